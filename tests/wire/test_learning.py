"""What Ollama says of its models, asked on the wire: what is asked, what comes of it, and what a silence costs."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.bootstrap import build_llm_service
from app.llm.errors import LLMNoCandidate
from app.llm.messages import ToolSpec
from app.llm.providers import Catalog
from app.llm.providers.ollama_says import facts_of, has_model, weights_of
from app.llm.service import LLMService
from app.llm.settings import load_settings
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.types import LLMProvider, ServedFrom
from app.llm.wire.describing import OllamaDescriber
from tests.support.ledger import GEMINI_KEY, Outside, request, settings_for

TOOLS = (ToolSpec(name="look", parameters={"type": "object", "properties": {}}),)
ASIDE = [("GET", "/api/tags"), ("POST", "/api/show")]


@pytest.fixture
def gemini() -> Iterator[StubGemini]:
    with StubGemini(models=("second",), api_key=GEMINI_KEY) as stub:
        yield stub


@asynccontextmanager
async def learning(ollama: StubOllama, gemini: StubGemini, **values: Any) -> AsyncIterator[LLMService]:
    own = {"persist_runs": False, "learn_timeout_s": 20, **values}
    bases = {"ollama_api_base": ollama.base_url, "gemini_api_base": gemini.base_url}
    async with build_llm_service(settings_for("sqlite+aiosqlite:///unused.db", **bases, **own)) as llm:
        yield llm


def asides(stub: StubOllama) -> list[tuple[str, str]]:
    return [(each.method, each.path) for each in stub.requests if not each.ordinal]


async def test_what_ollama_says_is_known_before_the_first_call_is_routed(gemini: StubGemini):
    with StubOllama(models=("first",), capabilities=["completion"], context_length=2048) as ollama:
        async with learning(ollama, gemini, ollama_num_ctx=4096) as llm:
            before = llm.explain(request()).kept[0]
            answer = await llm.chat(request(tools=TOOLS))
            after = llm.explain(request()).kept[0]
            await llm.chat(request("again"))
        assert answer.provider is LLMProvider.GEMINI
        assert [entry["reason"] for entry in answer.route] == ["listed", "no_tools"]
        assert (after.caps.max_context_tokens, before.caps.max_context_tokens) == (2048, 4096)
        assert after.identity != before.identity, "its weights are known"
        assert (asides(ollama), ollama.sends) == (ASIDE, 1)
        sent = next(each for each in ollama.requests if each.ordinal)
        assert sent.body["options"]["num_ctx"] == 4096, "what is learned changes no request"


async def test_inquiries_that_begin_at_once_share_their_connections():
    with StubOllama(models=("first", "other")) as ollama:
        settings = settings_for(
            "sqlite+aiosqlite:///unused.db", ollama_api_base=ollama.base_url, learn_timeout_s=20
        )
        describer, catalog = OllamaDescriber(settings), Catalog.from_settings(settings)
        names = ("ollama:first", "ollama:other")
        said = await asyncio.gather(*(describer.describe([catalog.pinned(name)]) for name in names))
        sessions = [session for line in describer._lines.values() for session in line._sessions.values()]
        await describer.close()
    assert [list(each) for each in said] == [[name] for name in names]
    assert [session.closed for session in sessions] == [True], "another one would never be closed"


async def test_headers_and_token_of_a_proxy_go_along(gemini: StubGemini):
    with StubOllama(models=("first",)) as ollama:
        async with learning(ollama, gemini, ollama_api_key="t-0123", ollama_headers="X-Team: a") as llm:
            await llm.chat(request())
        for each in ollama.requests[:2]:
            assert (each.headers["authorization"], each.headers["x-team"]) == ("Bearer t-0123", "a")


async def test_a_call_to_another_provider_ends_while_ollama_is_silent(gemini: StubGemini):
    with StubOllama(models=("first",)) as ollama:
        async with learning(ollama, gemini) as llm:
            with ollama.hang_show():
                slow = asyncio.create_task(llm.chat(request()))
                await asyncio.to_thread(ollama.wait_for_request, "/api/show")
                assert (await llm.chat(request(model="gemini:second"))).text
                assert not slow.done()
            assert (await slow).provider is LLMProvider.OLLAMA


async def test_an_ollama_that_describes_nothing_delays_one_call_by_the_timeout_and_then_answers(
    gemini: StubGemini,
):
    with StubOllama(models=("first",)) as ollama:
        async with learning(ollama, gemini, learn_timeout_s=0.05) as llm:
            with ollama.hang_show():
                first = await llm.chat(request())
                second = await llm.chat(request())
        assert first.provider is second.provider is LLMProvider.OLLAMA
        assert asides(ollama) == ASIDE


async def test_an_unreachable_ollama_is_no_fault_of_the_call(
    gemini: StubGemini, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="signalbox")
    with StubOllama(models=("first",)) as ollama:
        await asyncio.to_thread(ollama.down)
        async with learning(ollama, gemini) as llm:
            assert (await llm.chat(request())).provider is LLMProvider.GEMINI
    assert "llm_models_not_described" in caplog.text


@pytest.mark.parametrize(
    "values",
    [{"learn_timeout_s": 0}, {"local_only": True, "local_hosts": "elsewhere"}, {"providers_off": "ollama"}],
)
async def test_who_must_not_be_asked_is_not_asked(gemini: StubGemini, values: dict[str, Any]):
    with StubOllama(models=("first",)) as ollama:
        async with learning(ollama, gemini, **values) as llm:
            try:
                await llm.chat(request())
            except LLMNoCandidate:
                assert "local_only" in values
        assert asides(ollama) == []


async def test_a_model_that_is_not_there_is_told_of_and_not_asked_about(
    gemini: StubGemini, caplog: pytest.LogCaptureFixture
):
    with StubOllama(models=("another",)) as ollama:
        async with learning(ollama, gemini, fallback_on="model_not_found") as llm:
            await llm.chat(request())
        assert asides(ollama) == ASIDE[:1]
    assert "llm_model_missing" in caplog.text


async def test_a_refusal_of_tools_is_remembered_for_that_model_alone_and_in_every_view(
    gemini: StubGemini, sqlite_url: str
):
    with StubOllama(models=("first", "other")) as ollama:
        ollama.script(Reply.no_tools())
        values = {"profile_balanced": "ollama:first,ollama:other", "learn_timeout_s": 20}
        bases = {"ollama_api_base": ollama.base_url, "gemini_api_base": gemini.base_url}
        async with build_llm_service(settings_for(sqlite_url, **bases, **values)) as llm:
            first = await llm.chat(request("one", tools=TOOLS))
            second = await llm.chat(request("two", tools=TOOLS))
            kept = [candidate.name for candidate in llm.joined(None).explain(request(tools=TOOLS)).kept]
        assert [attempt.error_code for attempt in first.attempts] == ["capability", None]
        assert [attempt.model for attempt in second.attempts] == ["other"]
        assert kept == ["ollama:other"]
        assert {entry["model"]: entry["reason"] for entry in second.route}["first"] == "no_tools"


# -- weights


@asynccontextmanager
async def caching(url: str, ollama: StubOllama, **values: Any) -> AsyncIterator[LLMService]:
    own = {"cache_enabled": True, "profile_balanced": "ollama:first", "learn_timeout_s": 20, **values}
    async with build_llm_service(settings_for(url, ollama_api_base=ollama.base_url, **own)) as llm:
        yield llm


async def test_answers_of_old_weights_are_not_served_for_a_model_that_was_pulled_anew(sqlite_url: str):
    with StubOllama(models=("first",)) as ollama:
        ollama.script(Reply.text("of the old"), Reply.text("of the new"))
        said = []
        for renewed in (False, True):
            if renewed:
                ollama.renew("first")
            async with caching(sqlite_url, ollama) as llm:
                for _ in range(2):
                    answer = await llm.chat(request())
                    said.append((answer.text, answer.served_from))
        keyed = request(idempotency_key="k")
        async with caching(sqlite_url, ollama) as llm:
            assert (await llm.chat(keyed)).text == "of the new"
        ollama.renew("first")
        async with caching(sqlite_url, ollama) as llm:
            assert (await llm.chat(keyed)).served_from is ServedFrom.REPLAY, "a key holds its answer"
    assert said == [
        ("of the old", ServedFrom.LIVE),
        ("of the old", ServedFrom.CACHE),
        ("of the new", ServedFrom.LIVE),
        ("of the new", ServedFrom.CACHE),
    ]


async def test_a_process_that_lives_on_learns_of_new_weights_with_its_next_inquiry(sqlite_url: str):
    with StubOllama(models=("first",)) as ollama:
        async with caching(sqlite_url, ollama, learn_ttl_s=0.001) as llm:
            await llm.chat(request())
            ollama.renew("first")
            told = [await llm.chat(request())]
            while told[-1].served_from is ServedFrom.CACHE:  # until an inquiry beside a call has ended
                told.append(await llm.chat(request()))
        assert ollama.sends == 2


async def test_whose_weights_are_not_known_is_who_it_was_without_them(gemini: StubGemini):
    with StubOllama(models=("first",)) as ollama:
        async with learning(ollama, gemini, learn_timeout_s=0.05) as llm:
            before = llm.explain(request()).kept[0]
            with ollama.hang_show():
                await llm.chat(request())
            assert llm.explain(request()).kept[0].identity == before.identity


async def test_a_row_names_its_candidate_by_its_weights(sqlite_url: str):
    with StubOllama(models=("first",)) as ollama:
        async with caching(sqlite_url, ollama) as llm:
            answer = await llm.chat(request())
            known = llm.explain(request()).kept[0].identity
    outside = Outside(sqlite_url)
    row, (send,) = await outside.run(answer.run_id), await outside.attempts(answer.run_id)
    await outside.close()
    assert (row["candidate_sha256"], send["candidate_sha256"]) == (known, known)


@pytest.mark.parametrize(
    "tags",
    [
        None,
        [],
        {"models": {"a": 1}},
        {"models": [{"name": "a:latest", "digest": 5}]},
        {"models": [{"name": "a"}]},
    ],
)
def test_a_digest_that_is_none_is_not_known(tags: Any):
    assert weights_of(tags, "a") is None


def test_a_digest_is_that_of_the_tag():
    tags = {"models": [{"name": f"a:{tag}", "digest": tag} for tag in ("3b", "latest")]}
    assert [weights_of(tags, model) for model in ("a", "a:latest", "a:3b")] == ["latest", "latest", "3b"]


# -- what is said otherwise


@pytest.mark.parametrize(
    "shown", [None, [], {}, {"capabilities": "tools", "model_info": []}, {"model_info": {"general.architecture": "x", "x.context_length": "9"}}]
)  # fmt: skip
def test_what_is_not_said_as_expected_is_unknown(shown: Any):
    facts = facts_of(json.loads(json.dumps(shown)))
    assert (facts.tools, facts.vision, facts.context_tokens) == (None, None, None)


@pytest.mark.parametrize("tags", [None, [], {"models": None}, {"models": [1, {"name": None}]}])
def test_a_list_of_models_that_is_none_holds_nobody(tags: Any):
    assert not has_model(tags, "llama3.2")


def test_a_model_without_a_tag_is_the_latest():
    tags = {"models": [{"name": "llama3.2:latest"}, {"name": "qwen3:8b"}, {"name": "hf.co/a/b:q4"}]}
    assert [has_model(tags, name) for name in ("llama3.2", "qwen3:8b", "hf.co/a/b:q4", "qwen3")] == [
        True,
        True,
        True,
        False,
    ]


def test_by_default_ollama_is_asked():
    assert load_settings().learn_timeout_s > 0
