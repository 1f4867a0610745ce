"""Whom a call belongs to: every source is asked, and two that disagree are an error instead of a guess."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import JsonValue, ValidationError

from app.llm.errors import LLMInvalidRequest, LLMWorkspaceConflict, LLMWorkspaceMissing
from app.llm.types import LLMCallContext, LLMRequest

_scope: ContextVar[LLMCallContext | None] = ContextVar("signalbox_scope", default=None)

RESERVED = ("workspace_id", "pipeline_run_id", "stage")
"""Names in `LLMRequest.metadata` that are context, not metadata."""
NAMES_REMEMBERED = 1024


@contextmanager
def scope(
    *, workspace_id: str | None = None, pipeline_run_id: str | None = None, stage: str | None = None
) -> Iterator[None]:
    """Give every call inside the block this context, for what their other sources leave unsaid.

    Scopes nest: an inner one adds what the outer one leaves unsaid and may name another stage. They reach the tasks that
    are started inside the block, and the functions that `asyncio.to_thread` runs. No scope holds an idempotency key: a
    key belongs to one call.

    Raises:
        LLMWorkspaceConflict: A scope around this one names another workspace or pipeline run.
        LLMInvalidRequest: A name is blank, too long or not printable.
    """
    named = {"workspace_id": workspace_id, "pipeline_run_id": pipeline_run_id, "stage": stage}
    said = {name: value for name, value in named.items() if value is not None}
    for name, value in said.items():
        _check(name, value, said_in=f"scope({name}=)")
    outer = {
        name: value for name, value in _said_by(_scope.get()).items() if name != "stage" or stage is None
    }
    token = _scope.set(LLMCallContext(**_agreed({"scope": outer, "the scope inside it": said})))
    try:
        yield
    finally:
        _scope.reset(token)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedContext:
    """The one answer of all sources."""

    workspace_id: str
    pipeline_run_id: str | None
    stage: str | None
    idempotency_key: str | None
    metadata: Mapping[str, JsonValue]


def resolve_context(
    request: LLMRequest, given: LLMCallContext | None, *, default_workspace: str | None
) -> ResolvedContext:
    """Return what the argument, the request and the scope say together.

    Raises:
        LLMWorkspaceMissing: None of them, nor LLM_DEFAULT_WORKSPACE, names a workspace.
        LLMWorkspaceConflict: Two of them name different workspaces, pipeline runs, stages or keys.
        LLMInvalidRequest: A reserved name in the metadata holds something else than text.
    """
    facts = _facts(request, given)
    how = "put workspace_id into the request's metadata, pass context=LLMCallContext(workspace_id=...)"
    metadata = {name: value for name, value in request.metadata.items() if name not in RESERVED}
    return _resolved(facts, default_workspace, how, metadata)


def stage_of(request: LLMRequest) -> str | None:
    """Return the stage that the request and the scope name; None if they name none.

    Raises:
        LLMContractError: As `resolve_context`, but a workspace is not needed.
    """
    return _facts(request, None).get("stage")


def _facts(request: LLMRequest, given: LLMCallContext | None) -> dict[str, str]:
    return _agreed(
        {
            "context=": _said_by(given),
            "the request": _said_in(request),
            "scope": _said_by(_scope.get()),
        }
    )


def context_of_effect(
    key: str, given: LLMCallContext | None, *, default_workspace: str | None
) -> ResolvedContext:
    """Return whose an effect is, as the argument and the scope say together.

    Raises:
        LLMContractError: As `resolve_context`; the key is missing, blank, too long or not printable.
    """
    if not key:
        raise LLMInvalidRequest(
            f"key: an effect needs a key of its own, not {key!r}: without one it runs each time"
        )
    _check("idempotency_key", key, said_in="key")
    facts = _agreed(
        {"key": {"idempotency_key": key}, "context=": _said_by(given), "scope": _said_by(_scope.get())}
    )
    return _resolved(facts, default_workspace, "pass context=LLMCallContext(workspace_id=...)", {})


def _resolved(
    facts: Mapping[str, str], default: str | None, how: str, metadata: Mapping[str, JsonValue]
) -> ResolvedContext:
    return ResolvedContext(
        workspace_id=_workspace(facts, default, how),
        pipeline_run_id=facts.get("pipeline_run_id"),
        stage=facts.get("stage"),
        idempotency_key=facts.get("idempotency_key"),
        metadata=metadata,
    )


def workspace_of(named: str | None, *, default_workspace: str | None) -> str:
    """Return whose something is that no request belongs to, as the argument and the scope say.

    Raises:
        LLMWorkspaceMissing: Neither they nor LLM_DEFAULT_WORKSPACE name a workspace.
        LLMWorkspaceConflict: They name two.
    """
    facts = _agreed({"workspace_id=": {"workspace_id": named}, "scope": _said_by(_scope.get())})
    return _workspace(facts, default_workspace, "pass workspace_id=")


def _workspace(facts: Mapping[str, str], default: str | None, how: str) -> str:
    workspace_id = facts.get("workspace_id") or default
    if workspace_id is None:
        raise LLMWorkspaceMissing(f"no workspace is named: {how}, or set LLM_DEFAULT_WORKSPACE")
    return workspace_id


def _agreed(sources: Mapping[str, Mapping[str, str | None]]) -> dict[str, str]:
    facts: dict[str, str] = {}
    for said in sources.values():
        for name, value in said.items():
            if value is not None and facts.setdefault(name, value) != value:
                raise _conflict(name, sources)
    return facts


def _said_by(context: LLMCallContext | None) -> Mapping[str, str | None]:
    return {} if context is None else vars(context)


def _said_in(request: LLMRequest) -> Mapping[str, str | None]:
    said: dict[str, Any] = {"idempotency_key": request.idempotency_key}
    for name in RESERVED:
        value = request.metadata.get(name)
        if value is not None:
            (_check_name if isinstance(value, str) else _check)(name, value)
            said[name] = value
    return said


def _check(name: str, value: object, said_in: str | None = None) -> None:
    try:
        LLMCallContext.model_validate({name: value})
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise LLMInvalidRequest(f"{said_in or f'metadata[{name!r}]'}: {fault['msg']}") from None


_check_name = lru_cache(NAMES_REMEMBERED)(_check)
"""Workspaces and stages come again and again: a name that was good once is good."""


def _conflict(name: str, sources: Mapping[str, Mapping[str, str | None]]) -> LLMWorkspaceConflict:
    values = {source: said.get(name) for source, said in sources.items()}
    both = ", ".join(f"{source} says {value!r}" for source, value in values.items() if value is not None)
    return LLMWorkspaceConflict(f"two sources name different values of {name}: {both}")
