"""What a trace tells of calls over real sockets: the call, its sends, the ledger, and the row that says more."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from pydantic_ai import Agent
from pydantic_ai.models.instrumented import InstrumentationSettings

from app.bootstrap import build_llm_service
from app.llm import conventions as names
from app.llm import tracing
from app.llm.candidates import Candidate
from app.llm.errors import LLMNoCandidate, LLMProviderError
from app.llm.messages import ImagePart, Message, TextPart, ToolCallPart, ToolResultPart, ToolSpec
from app.llm.ports import ProviderReply
from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.service import LLMService
from app.llm.settings import load_settings
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import LLMRequest, TokenUsage
from tests.support.ledger import Outside, settings_for
from tests.support.service import service
from tests.support.traces import Traces, is_below, said, trace_id

KEY = "sk-0123456789abcdefghij"
ASKED = LLMRequest(
    messages=(Message.user("Hello"),), temperature=0.5, max_output_tokens=64, metadata={"stage": "draft"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A traced service on its two providers, of which Ollama is asked first."""

    llm: LLMService
    ollama: StubOllama
    gemini: StubGemini
    ledger: Outside
    traces: Traces

    async def rows(self) -> list[dict[str, Any]]:
        await self.llm.drain()
        return await self.ledger.runs()


@pytest.fixture
def traces() -> Iterator[Traces]:
    found = Traces()
    yield found
    found.provider.shutdown()


@asynccontextmanager
async def world_on(url: str, traces: Traces, **given: Any) -> AsyncIterator[World]:
    ledger = Outside(url)
    with StubOllama() as ollama, StubGemini() as gemini:
        settings = load_settings(
            ollama_api_base=ollama.base_url,
            gemini_api_base=gemini.base_url,
            gemini_api_key="stub-key",
            database_url=url,
            default_workspace="acme",
            attempts_per_candidate=1,
            learn_timeout_s=0,
            **given,
        )
        try:
            async with build_llm_service(settings, tracer_provider=traces.provider) as llm:
                yield World(llm=llm, ollama=ollama, gemini=gemini, ledger=ledger, traces=traces)
        finally:
            await ledger.close()


async def test_a_call_is_a_span_with_one_below_for_each_send_and_each_transaction(
    db_url: str, traces: Traces
):
    async with world_on(db_url, traces) as world:
        world.ollama.script(Reply.status(503))
        world.gemini.script(Reply.text("Good day.", usage=(11, 7)))
        answer = await world.llm.chat(ASKED)
        (row,) = await world.rows()
        port = urlsplit(world.gemini.base_url).port
    call = traces.one(names.CALL_SPAN)
    failed, answered = traces.named("chat ")
    claim, finish = traces.one(names.CLAIM_SPAN), traces.one(names.FINISH_SPAN)
    assert all(is_below(span, call) for span in (failed, answered, claim, finish))
    assert (call.kind, call.status.status_code, call.parent) == (SpanKind.INTERNAL, StatusCode.UNSET, None)
    assert said(call) == {
        "signalbox.run_id": answer.run_id,
        "signalbox.workspace_id": "acme",
        "signalbox.stage": "draft",
        "signalbox.profile": "balanced",
        "signalbox.status": "SUCCEEDED",
        "signalbox.served_from": "live",
        "signalbox.answered_by": "gemini:gemini-2.5-flash",
        "signalbox.failed_attempts": 1,
    }
    assert (answered.name, answered.kind) == ("chat gemini-2.5-flash", SpanKind.CLIENT)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "gcp.gemini",
        "gen_ai.request.model": "gemini-2.5-flash",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 64,
        "gen_ai.response.model": "gemini-2.5-flash",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 7,
        "server.address": "127.0.0.1",
        "server.port": port,
        "http.response.status_code": 200,
        "signalbox.run_id": answer.run_id,
        "signalbox.attempt": 2,
        "signalbox.cost_usd": float(answer.cost_usd or 0),
    }
    assert said(answered) == expected
    assert [said(span)[names.OUTCOME] for span in (claim, finish)] == ["won", "written"]
    assert row["trace_id"] == trace_id(call)


async def test_a_send_that_failed_says_why_and_is_as_long_as_its_row(sqlite_url: str, traces: Traces):
    async with world_on(sqlite_url, traces, profile_balanced="ollama") as world:
        world.ollama.script(Reply.status(500))
        with pytest.raises(LLMProviderError) as caught:
            await world.llm.chat(ASKED)
        await world.llm.drain()
        (sent,) = await world.ledger.attempts(str(caught.value.run_id))
    span, call = traces.one("chat "), traces.one(names.CALL_SPAN)
    told = said(span)
    assert (told["error.type"], told["http.response.status_code"]) == ("unavailable", 500)
    assert told["signalbox.possibly_paid"] is True
    assert names.RESPONSE_MODEL not in told
    assert (span.status.status_code, call.status.status_code) == (StatusCode.ERROR, StatusCode.ERROR)
    assert (said(call)["error.type"], said(call)["signalbox.status"]) == ("unavailable", "FAILED")
    times = [int(sent[name].timestamp() * 1e6) for name in ("started_at", "finished_at")]
    assert [abs((at or 0) // 1000 - time) < 1000 for at, time in zip((span.start_time, span.end_time), times, strict=True)] == [True, True]  # fmt: skip


async def test_a_send_says_what_the_provider_kept_of_the_prompt(sqlite_url: str, traces: Traces):
    usage = TokenUsage(input_tokens=100, output_tokens=5, cached_input_tokens=60, cache_write_tokens=30)
    client = ScriptedClient([replace(text_reply("yes"), usage=usage)])
    async with build_llm_service(
        settings_for(sqlite_url), client=client, tracer_provider=traces.provider
    ) as llm:
        await llm.chat(ASKED)
    told = said(traces.one("chat "))
    assert told["gen_ai.usage.input_tokens"] == 100
    assert told["gen_ai.usage.cache_read.input_tokens"] == 60
    assert told["gen_ai.usage.cache_creation.input_tokens"] == 30


async def test_an_answer_out_of_a_cassette_names_no_server(sqlite_url: str, traces: Traces, tmp_path: Path):
    served = []
    for mode in ("record", "replay"):
        given = {"mode": mode, "cassette": tmp_path / "tape.jsonl", "profile_balanced": "ollama"}
        async with world_on(sqlite_url, traces, **given) as world:
            served.append((await world.llm.chat(ASKED)).served_from)
    recorded, replayed = (said(span) for span in traces.named("chat "))
    assert served == ["live", "cassette"]
    assert {"server.address", "server.port"} <= recorded.keys()
    assert not {"server.address", "server.port"} & replayed.keys()
    assert said(traces.named(names.CALL_SPAN)[1])["signalbox.served_from"] == "cassette"


async def test_a_replay_and_a_refused_call_have_a_span_and_no_send(sqlite_url: str, traces: Traces):
    keyed = ASKED.model_copy(update={"idempotency_key": "k1"})
    async with world_on(sqlite_url, traces) as world:
        first = await world.llm.chat(keyed)
        traces.exporter.clear()
        await world.llm.chat(keyed)
        with pytest.raises(LLMNoCandidate):
            await world.llm.chat(ASKED.model_copy(update={"model": "openai:gpt-5"}))
    replayed, refused = traces.named(names.CALL_SPAN)
    assert (said(replayed)["signalbox.served_from"], said(replayed)["signalbox.run_id"]) == (
        "replay",
        first.run_id,
    )
    assert said(refused)["error.type"] == "no_candidate"
    assert refused.status.status_code is StatusCode.ERROR
    assert traces.named("chat ") == []


async def test_a_stream_that_its_listener_left_is_no_error(db_url: str, traces: Traces):
    async with world_on(db_url, traces) as world:
        gate = world.ollama.gate()
        world.ollama.script(Reply.stream("one", gate, "two"))
        with trace.use_span(traces.provider.get_tracer("host").start_span("host"), end_on_exit=True):
            async with world.llm.stream(ASKED) as stream:
                async for _ in stream:
                    break
        gate.release()
        (row,) = await world.rows()
    host, call, send = traces.one("host"), traces.one(names.CALL_SPAN), traces.one("chat ")
    assert is_below(call, host)
    assert (said(send)["gen_ai.request.stream"], said(send)["error.type"]) == (True, "cancelled")
    assert [span.status.status_code for span in (call, send)] == [StatusCode.UNSET] * 2
    assert (row["status"], row["trace_id"]) == ("CANCELLED", trace_id(host))
    assert said(traces.one(names.FINISH_SPAN))[names.OUTCOME] == "written"


@pytest.mark.parametrize("trace_content", [False, True])
async def test_prompts_and_answers_are_in_spans_only_on_demand_and_redacted(
    sqlite_url: str, traces: Traces, *, trace_content: bool
):
    asked = LLMRequest(
        messages=(
            Message.system("Be brief."),
            Message(
                role="user",
                content=(
                    TextPart(text=f"my key is {KEY}"),
                    ImagePart(data=b"\x89PNG", media_type="image/png"),
                ),
            ),
            Message(role="assistant", content=(ToolCallPart(id="c1", name="look", arguments={"at": KEY}),)),
            Message(role="tool", content=(ToolResultPart(id="c1", name="look", content="a dog"),)),
        ),
        tools=(ToolSpec(name="look"),),
    )
    given = {"profile_balanced": "gemini", "trace_content": trace_content}
    async with world_on(sqlite_url, traces, **given) as world:
        world.gemini.script(Reply.text("A dog."))
        await world.llm.chat(asked)
    told = said(traces.one("chat "))
    assert KEY not in json.dumps(told)
    assert (names.INPUT_MESSAGES in told, names.OUTPUT_MESSAGES in told) == (trace_content, trace_content)
    if trace_content:
        turns = json.loads(told[names.INPUT_MESSAGES])
        assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "tool"]
        assert turns[1]["parts"][1] == {"type": "image", "mime_type": "image/png"}
        assert turns[2]["parts"][0]["arguments"] == {"at": "[redacted]"}
        assert turns[3]["parts"] == [{"type": "tool_call_response", "id": "c1", "response": "a dog"}]
        (answer,) = json.loads(told[names.OUTPUT_MESSAGES])
        assert answer == {
            "role": "assistant",
            "parts": [{"type": "text", "content": "A dog."}],
            "finish_reason": "stop",
        }


async def test_within_an_instrumented_agent_its_span_is_the_call_and_has_the_tokens(
    sqlite_url: str, traces: Traces
):
    async with world_on(sqlite_url, traces, trace_content=True) as world:
        agent = Agent(PydanticAiLiteLLMModel(world.llm, model="ollama:llama3.2"), output_type=str)
        agent.instrument = InstrumentationSettings(tracer_provider=traces.provider)
        await agent.run("Hello")
        (row,) = await world.rows()
    request, send = traces.one("chat ollama:llama3.2"), traces.one("chat llama3.2")
    assert traces.named(names.CALL_SPAN) == []
    assert is_below(send, request)
    assert is_below(traces.one(names.CLAIM_SPAN), request)
    holders = [span.name for span in traces.spans if names.INPUT_TOKENS in said(span)]
    assert holders == [request.name]
    assert names.INPUT_MESSAGES not in said(send)
    assert said(request)["signalbox.run_id"] == said(send)["signalbox.run_id"] == row["id"]
    assert row["trace_id"] == trace_id(request)


async def test_a_trace_that_is_not_sampled_has_no_spans_and_its_id_on_the_row(db_url: str):
    traces = Traces(sampler=ALWAYS_OFF)
    async with world_on(db_url, traces) as world:
        tracer = traces.provider.get_tracer("host")
        with tracer.start_as_current_span("host") as host:
            await world.llm.chat(ASKED)
            here = trace.format_trace_id(host.get_span_context().trace_id)
        (row,) = await world.rows()
    assert (traces.spans, row["trace_id"]) == ((), here)


async def test_an_effect_has_its_transactions_in_the_trace_of_its_caller(db_url: str, traces: Traces):
    async def work() -> str:
        return "sent"

    async with world_on(db_url, traces) as world:
        with traces.provider.get_tracer("host").start_as_current_span("host") as host:
            await world.llm.once("mail-1", "send_mail", {"to": "jo"}, work)
        await world.llm.once("mail-2", "send_mail", {"to": "jo"}, work)
        first, second = await world.rows()
    assert [is_below(span, traces.one("host")) for span in traces.named("signalbox.ledger.")] == [True, True]
    assert first["trace_id"] == trace.format_trace_id(host.get_span_context().trace_id)
    assert second["trace_id"] is None


async def test_hits_keep_the_trace_in_which_they_were_served(db_url: str, traces: Traces):
    async with world_on(db_url, traces, cache_enabled=True, memory_cache_bytes=0) as world:
        await world.llm.chat(ASKED)
        await world.llm.chat(ASKED)
        rows = await world.rows()
    calls = traces.named(names.CALL_SPAN)
    assert [said(call)["signalbox.served_from"] for call in calls] == ["live", "cache"]
    assert {row["trace_id"] for row in rows} == {trace_id(call) for call in calls}
    assert len(rows) == 2


async def test_without_a_tracer_provider_nothing_is_traced(sqlite_url: str):
    """The global one of this process is OpenTelemetry's own, which does nothing."""
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    seen: list[trace.Span] = []

    def answer(_request: LLMRequest, _candidate: Candidate) -> ProviderReply:
        seen.append(trace.get_current_span())
        return text_reply("yes")

    ledger = Outside(sqlite_url)
    async with service(sqlite_url, ScriptedClient([answer])) as llm:
        await llm.chat(ASKED)
    (row,) = await ledger.runs()
    await ledger.close()
    assert (row["trace_id"], seen) == (None, [trace.INVALID_SPAN])


async def test_a_provider_that_the_program_sets_later_is_found(
    sqlite_url: str, traces: Traces, monkeypatch: pytest.MonkeyPatch
):
    """OpenTelemetry lets a process set its global provider once; the test puts it where that would."""
    monkeypatch.setattr(tracing, "LOOK_EVERY_S", 0.0)
    async with service(sqlite_url) as llm:
        await llm.chat(ASKED)
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", traces.provider)
        await llm.chat(ASKED)
    assert [span.name for span in traces.named(names.CALL_SPAN)] == [names.CALL_SPAN]
    assert len(traces.named("chat ")) == 1
