"""Events and metrics of a call: what an operator sees, and what nobody may see there."""

import asyncio
import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from app.bootstrap import build_llm_service
from app.llm import metric_names as metered
from app.llm import telemetry as names
from app.llm.errors import LLMProviderError, LLMWorkspaceMissing
from app.llm.telemetry import Telemetry
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.wire.loading import load_litellm
from tests.support.ledger import GEMINI_KEY, Outside, request, settings_for
from tests.support.service import limited, refused, service

KEYED = request(idempotency_key="k1")


class Counters:
    """Metrics in memory."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.observed: Counter[str] = Counter()

    def add(self, name: str, value: float, labels: Any) -> None:
        assert set(labels) <= set(metered.METRICS[name].labels)
        self.counts[(name, *(f"{key}={labels[key]}" for key in sorted(labels)))] += int(value)

    def observe(self, name: str, value: float, labels: Any) -> None:  # noqa: ARG002  # the port's signature
        assert set(labels) <= set(metered.METRICS[name].labels)
        self.observed[name] += 1

    def watch(self, name: str, read: Any) -> Any:  # noqa: ARG002  # the port's signature
        return lambda: None

    def total(self, name: str, *labels: str) -> int:
        return sum(n for key, n in self.counts.items() if key[0] == name and set(labels) <= set(key))


def _events(caplog: Any, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(record.message) for record in caplog.records if record.name == "signalbox"]
    return [line for line in lines if line["event"] == name]


@pytest.fixture(autouse=True)
def _all_levels(caplog: Any) -> None:
    caplog.set_level("DEBUG", logger="signalbox")


async def test_a_call_is_counted_where_it_ends(sqlite_url: str):
    metrics = Counters()
    client = ScriptedClient([limited(), refused(), text_reply("yes"), *(refused() for _ in range(4))])
    settings = settings_for(sqlite_url, cache_enabled=True)
    async with build_llm_service(settings, client=client, metrics=metrics) as llm:
        await llm.chat(KEYED)
        await llm.chat(KEYED)
        client.script = [refused() for _ in range(4)]
        with pytest.raises(LLMProviderError):
            await llm.chat(request("Other"))
    assert metrics.total(metered.CALLS) == 3
    assert metrics.total(metered.CALLS, "status=SUCCEEDED") == 2
    assert metrics.total(metered.CALLS, "status=FAILED") == 1
    assert metrics.total(metered.SERVED, "served_from=live") == 1
    assert metrics.total(metered.SERVED, "served_from=replay") == 1
    assert metrics.total(metered.ATTEMPTS, "status=FAILED") == 6
    assert metrics.total(metered.ATTEMPTS, "status=SUCCEEDED") == 1
    assert metrics.total(metered.RETRIES, "model=first", "provider=ollama") == 2
    assert metrics.total(metered.FALLBACKS, "model=first", "provider=ollama") == 2
    assert metrics.total(metered.TOKENS, "kind=input") == 3
    assert metrics.total(metered.TOKENS, "kind=output") == 5
    assert metrics.total(metered.IN_FLIGHT) == 0
    assert metrics.observed[metered.CALL_DURATION_S] == 3


async def test_calls_in_flight_are_counted_down_however_they_end(sqlite_url: str):
    metrics, client = Counters(), ScriptedClient(gate=asyncio.Event())
    async with build_llm_service(settings_for(sqlite_url), client=client, metrics=metrics) as llm:
        call = asyncio.create_task(llm.chat(request()))
        while not client.sends:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert metrics.total(metered.IN_FLIGHT) == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert metrics.total(metered.IN_FLIGHT) == 0
        assert metrics.total(metered.CALLS, "status=CANCELLED") == 1


async def test_a_refused_call_is_told_as_refused(sqlite_url: str, caplog: Any):
    async with service(sqlite_url, default_workspace=None) as llm:
        with pytest.raises(LLMWorkspaceMissing):
            await llm.chat(request())
    (event,) = _events(caplog, names.EVENT_CALL)
    assert (event["status"], event["error_code"], event["level"]) == ("REFUSED", "workspace_missing", "info")


async def test_the_closing_event_names_the_run_and_who_answered(sqlite_url: str, caplog: Any):
    async with service(sqlite_url) as llm:
        first = await llm.chat(KEYED)
        await llm.chat(KEYED)
    live, replay = _events(caplog, names.EVENT_CALL)
    for event, source in ((live, "live"), (replay, "replay")):
        assert (event["status"], event["served_from"], event["llm_run_id"]) == (
            "SUCCEEDED",
            source,
            first.run_id,
        )
        assert (event["workspace_id"], event["provider"], event["model"]) == ("w1", "ollama", "first")


async def test_a_failed_attempt_and_a_failed_call_are_warnings(sqlite_url: str, caplog: Any):
    async with service(sqlite_url, ScriptedClient([refused()]), max_attempts=1) as llm:
        with pytest.raises(LLMProviderError) as caught:
            await llm.chat(request())
    (attempt,) = _events(caplog, names.EVENT_ATTEMPT_FAILED)
    (call,) = _events(caplog, names.EVENT_CALL)
    assert (attempt["level"], attempt["error_code"], attempt["ordinal"]) == ("warning", "unavailable", 1)
    assert (call["level"], call["status"], call["llm_run_id"]) == ("warning", "FAILED", caught.value.run_id)


@pytest.mark.parametrize("log_content", [False, True])
async def test_prompts_and_answers_are_logged_only_on_demand(
    sqlite_url: str, caplog: Any, *, log_content: bool
):
    client = ScriptedClient([text_reply("the very answer")])
    async with service(sqlite_url, client, log_content=log_content) as llm:
        await llm.chat(request("the very question"))
    assert ("the very answer" in caplog.text) is log_content
    assert ("the very question" in caplog.text) is log_content


async def test_no_secret_is_in_a_log_line_a_row_or_an_error(sqlite_url: str, caplog: Any):
    """I17."""
    told = refused().with_facts(provider="gemini")
    told.args = (f"403 for url https://x/v1?key={GEMINI_KEY} Bearer {GEMINI_KEY}",)
    outside = Outside(sqlite_url)
    async with service(sqlite_url, ScriptedClient([told]), max_attempts=1, log_content=True) as llm:
        assert GEMINI_KEY not in repr(llm._settings)
        with pytest.raises(LLMProviderError):
            await llm.chat(request(f"my key is {GEMINI_KEY}"))
    assert GEMINI_KEY not in caplog.text
    assert GEMINI_KEY not in repr(await outside.runs())
    await outside.close()


async def test_a_ready_line_says_what_was_started(sqlite_url: str, caplog: Any):
    async with service(sqlite_url, cache_enabled=True):
        pass
    (ready,) = _events(caplog, names.EVENT_READY)
    assert ready["candidates"] == "ollama:first, gemini:second"
    assert (ready["cache"], ready["database"], ready["mode"]) == ("on", sqlite_url, "live")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "plain"),
        ({"payload_key": "A" * 43 + "="}, "encrypted"),
        ({"payload_key": "A" * 43 + "=", "store_payloads": "hash"}, "hash"),
        ({"persist_runs": False}, "none"),
    ],
)
async def test_a_ready_line_says_how_texts_are_kept(
    sqlite_url: str, caplog: Any, settings: dict[str, Any], said: str
):
    async with service(sqlite_url, **settings):
        (ready,) = _events(caplog, names.EVENT_READY)
    assert ready["payloads"] == said


def test_an_event_leaves_out_what_is_unknown_and_redacts_the_rest(caplog: Any):

    Telemetry().event("x", level="warning", a=None, b="Bearer abcdefghijkl", c=3)
    (event,) = _events(caplog, "x")
    assert "a" not in event
    assert event["b"] == "Bearer [redacted]"
    assert event["c"] == 3


def _library_without_classes() -> SimpleNamespace:
    load_litellm()  # as ever: what imports parts of it later must find it without its own ways
    return SimpleNamespace()


async def test_a_litellm_that_lacks_the_lane_is_a_warning_of_the_service(sqlite_url: str, caplog: Any):
    async with build_llm_service(settings_for(sqlite_url)) as llm:
        client: Any = llm._wiring.client
        client._warm = _library_without_classes
        await client.warm_up()
        await client.warm_up()
    (said,) = _events(caplog, names.EVENT_LANE_UNFIT)
    assert (said["level"], said["lane"]) == ("warning", "acompletion")
    assert "AttributeError" in said["reason"]


def test_an_event_that_nobody_wants_is_not_even_redacted(caplog: Any):
    caplog.set_level("WARNING", logger="signalbox")
    looked_at: list[str] = []

    def redact(text: str) -> str:
        looked_at.append(text)
        return text

    telemetry = Telemetry(redactor=redact)  # type: ignore[arg-type]  # all that is needed of one
    telemetry.event("x", b="text")
    assert (looked_at, _events(caplog, "x")) == ([], [])
    telemetry.event("x", level="warning", b="text")
    assert (looked_at, len(_events(caplog, "x"))) == (["text"], 1)


def test_a_run_id_of_digits_alone_stays_readable_and_names_are_redacted_each_time(caplog: Any):
    run_id = "01931234-5678-7012-8345-678901234567"
    for _ in range(2):
        Telemetry().event(
            "x", level="warning", llm_run_id=run_id, workspace_id="jo@example.org", error="x" * 99
        )
    events = _events(caplog, "x")
    assert [event["llm_run_id"] for event in events] == [run_id] * 2
    assert [event["workspace_id"] for event in events] == ["[redacted]"] * 2
    assert [event["error"] for event in events] == ["x" * 99] * 2


@pytest.mark.parametrize(
    ("value", "read"),
    [("größe", "größe"), ("\ud800", "\ud800"), (2**70, 2**70), ({1}, "{1}")],
    ids=["beyond ASCII", "half a surrogate pair", "wide integer", "no JSON"],
)
def test_a_line_is_ascii_json_whatever_its_fields_hold(caplog: Any, value: Any, read: Any):
    Telemetry().event("x", level="warning", value=value)
    (line,) = [record.message for record in caplog.records if record.name == "signalbox"]
    assert line.isascii()
    told = json.loads(line)
    assert (told["event"], told["level"], told["value"]) == ("x", "warning", read)
    assert told["timestamp"].endswith("Z")


def test_metrics_are_spelled_in_one_file():
    here = {
        name for name, value in vars(names).items() if isinstance(value, str) and value.startswith("llm_")
    }
    own = {name for name in here if name in vars(metered)}
    assert {name for name in here - own if not name.startswith("EVENT_")} == set()


async def test_an_answer_that_the_caller_wants_anew_is_no_takeover(sqlite_url: str, caplog: Any):
    metrics = Counters()
    settings = settings_for(sqlite_url)
    async with build_llm_service(settings, client=ScriptedClient(), metrics=metrics) as llm:
        await llm.chat(KEYED)
        await llm.chat(request(idempotency_key="k1", force_new_execution=True))
    assert metrics.total(metered.CALLS) == 2
    assert metrics.total(metered.TAKEOVERS) == 0
    assert _events(caplog, names.EVENT_TAKEOVER) == []


async def test_takeovers_are_counted_and_told(sqlite_url: str, caplog: Any):
    metrics, outside = Counters(), Outside(sqlite_url)
    client = ScriptedClient(gate=asyncio.Event())
    settings = settings_for(sqlite_url)
    async with build_llm_service(settings, client=client, metrics=metrics) as llm:
        dead = asyncio.create_task(llm.chat(KEYED))
        while not client.sends:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await outside.end_leases()
        async with build_llm_service(settings, client=ScriptedClient(), metrics=metrics) as other:
            await other.chat(KEYED)
        client.gate.set() if client.gate else None
        await dead
    await outside.close()
    assert metrics.total(metered.TAKEOVERS) == 1
    assert len(_events(caplog, names.EVENT_TAKEOVER)) == 1
