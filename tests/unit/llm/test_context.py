"""Whose call it is: every source counts, and two that disagree are an error."""

import asyncio

import pytest

from app.llm.context import RESERVED, resolve_context, scope
from app.llm.errors import LLMInvalidRequest, LLMWorkspaceConflict, LLMWorkspaceMissing
from app.llm.types import LLMCallContext
from tests.support.ledger import request


@pytest.mark.parametrize("source", ["argument", "metadata", "scope", "default"])
def test_each_source_alone_names_the_workspace(source: str):
    argument = LLMCallContext(workspace_id="w")
    asked = request(metadata={"workspace_id": "w"} if source == "metadata" else {})
    given = argument if source == "argument" else None
    default = "w" if source == "default" else None
    if source == "scope":
        with scope(workspace_id="w"):
            found = resolve_context(asked, given, default_workspace=default)
    else:
        found = resolve_context(asked, given, default_workspace=default)
    assert (found.workspace_id, found.pipeline_run_id, found.stage, found.idempotency_key) == (
        "w",
        None,
        None,
        None,
    )


def test_no_source_is_an_error_that_says_what_to_do():
    with pytest.raises(LLMWorkspaceMissing, match="LLM_DEFAULT_WORKSPACE"):
        resolve_context(request(), None, default_workspace=None)


@pytest.mark.parametrize("name", [*RESERVED, "idempotency_key"])
def test_two_sources_that_disagree_are_both_named(name: str):
    """I13: never a guess between two tenants."""
    asked = request(idempotency_key="b") if name == "idempotency_key" else request(metadata={name: "b"})
    with pytest.raises(LLMWorkspaceConflict) as caught:
        resolve_context(asked, LLMCallContext(**{name: "a"}), default_workspace="w")
    for word in (name, "'a'", "'b'", "context=", "the request"):
        assert word in str(caught.value)


def test_sources_that_agree_are_one():
    with scope(workspace_id="w", stage="s"):
        found = resolve_context(
            request(metadata={"workspace_id": "w", "page": 1}),
            LLMCallContext(workspace_id="w", pipeline_run_id="p"),
            default_workspace=None,
        )
    assert (found.workspace_id, found.pipeline_run_id, found.stage) == ("w", "p", "s")
    assert found.metadata == {"page": 1}


def test_the_default_yields_to_everybody():
    found = resolve_context(request(), LLMCallContext(workspace_id="mine"), default_workspace="default")
    assert found.workspace_id == "mine"


def named() -> tuple[str | None, ...]:
    """Return workspace, pipeline run and stage of a call that names nothing itself."""
    found = resolve_context(request(), None, default_workspace="default")
    return found.workspace_id, found.pipeline_run_id, found.stage


def test_an_inner_scope_adds_what_is_unsaid_and_may_name_another_stage():
    with scope(workspace_id="w"):
        with scope(pipeline_run_id="p", stage="one"):
            assert named() == ("w", "p", "one")
            with scope(workspace_id="w", stage="two"), scope():
                assert named() == ("w", "p", "two")
            assert named() == ("w", "p", "one")
        assert named() == ("w", None, None)
    assert named() == ("default", None, None)


@pytest.mark.parametrize("name", ["workspace_id", "pipeline_run_id"])
def test_an_inner_scope_that_names_another_tenant_or_run_is_a_conflict(name: str):
    """I13: a step of one workflow must not end up in another one's rows."""
    with (
        scope(**{name: "a"}),
        scope(stage="s"),
        pytest.raises(LLMWorkspaceConflict, match=f"{name}: scope says 'a', the scope inside it says 'b'"),
        scope(**{name: "b"}),
    ):
        pytest.fail("the block must not begin")
    with scope(**{name: "b"}):
        assert "b" in named()


def test_a_stage_that_the_call_names_otherwise_is_a_conflict():
    with scope(stage="a"), pytest.raises(LLMWorkspaceConflict, match="the request says 'b', scope says 'a'"):
        resolve_context(request(metadata={"stage": "b"}), None, default_workspace="w")


def test_a_scope_ends_when_its_block_fails():
    with pytest.raises(RuntimeError), scope(workspace_id="w"):
        raise RuntimeError
    assert named() == ("default", None, None)


@pytest.mark.parametrize("value", ["", " ", "a\nb", "x" * 256], ids=repr)
def test_a_scope_takes_short_lines_of_text_only(value: str):
    with pytest.raises(LLMInvalidRequest, match=r"scope\(stage=\): "), scope(stage=value):
        pytest.fail("the block must not begin")


async def test_a_scope_reaches_tasks_and_threads_that_are_started_inside_it():
    async def task() -> tuple[str | None, ...]:
        with scope(stage="task"):
            await asyncio.sleep(0)
            return named()

    with scope(workspace_id="w", stage="outer"):
        started = asyncio.create_task(task())
        assert await asyncio.to_thread(named) == ("w", None, "outer")
    assert await started == ("w", None, "task")
    assert named() == ("default", None, None)


async def test_scopes_of_tasks_do_not_mix():
    """I13."""

    async def mine(name: str) -> str:
        with scope(workspace_id=name):
            await asyncio.sleep(0)
            return resolve_context(request(), None, default_workspace=None).workspace_id

    assert await asyncio.gather(mine("a"), mine("b"), mine("c")) == ["a", "b", "c"]


@pytest.mark.parametrize("value", [7, True, ["w"], {"id": "w"}, "", " ", "a\nb", "x" * 256], ids=repr)
def test_a_reserved_name_that_holds_no_short_line_of_text_is_refused(value: object):
    with pytest.raises(LLMInvalidRequest, match="workspace_id"):
        resolve_context(request(metadata={"workspace_id": value}), None, default_workspace="w")


def test_a_reserved_name_that_is_null_says_nothing():
    found = resolve_context(request(metadata={"stage": None}), None, default_workspace="w")
    assert (found.stage, dict(found.metadata)) == (None, {})
