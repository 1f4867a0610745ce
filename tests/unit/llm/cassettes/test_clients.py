"""The two clients behind the port of the service, without a socket: what is recorded, what is told, what is a miss."""

from pathlib import Path
from typing import Any

import pytest

from app.bootstrap import build_llm_service
from app.llm.cassettes.clients import CassetteClient, RecordingClient
from app.llm.cassettes.held import cassette, in_force
from app.llm.cassettes.lines import Asked, kept
from app.llm.cassettes.tapes import Playing, Recording
from app.llm.deltas import Delta, TextDelta
from app.llm.errors import (
    LLMCassetteMiss,
    LLMError,
    LLMQueueFull,
    LLMSettingsError,
    LLMTimeout,
    LLMUnavailable,
)
from app.llm.ports import Listener
from app.llm.service import LLMService
from app.llm.settings import LLMMode, LLMSettings, isolated_settings
from app.llm.testing import StubOllama
from app.llm.testing.client import ScriptedClient, Told, text_reply
from tests.support.ledger import Outside, request, route_of
from tests.support.service import service

TAPE = Path("tape.jsonl")
FIRST = route_of(request()).kept[0]
ALONE = isolated_settings(profile_balanced="ollama:first", persist_runs=False, default_workspace="w1")


def refuse(_: float) -> None:
    raise LLMUnavailable("left alone", provider="ollama", skipped=True)


async def send(client: Any, *, timeout_s: float = 5, **more: Any) -> Any:
    facts = {"run_id": "r", "workspace_id": "w1", "on_send": lambda _: None, **more}
    return await client.send(request(), FIRST, timeout_s=timeout_s, **facts)


def recorded(*outcomes: Any) -> None:
    tape = Recording(TAPE)
    for each in outcomes:
        tape.add(tape.place(), kept(Asked.of(request(), FIRST, str), each, (), str))


def is_written() -> bool:
    return TAPE.exists()


class Unsent(ScriptedClient):
    """Fails before anything is sent."""

    async def send(self, *_: Any, **__: Any) -> Any:
        raise LLMQueueFull("full", provider="ollama")


async def test_what_was_never_sent_is_not_recorded():
    for client, more in ((Unsent(), {}), (ScriptedClient(), {"on_send": refuse})):
        with pytest.raises(LLMError) as caught:
            await send(RecordingClient(client, Recording(TAPE), str), **more)
        assert isinstance(caught.value, LLMQueueFull | LLMUnavailable)
    assert not is_written()


async def test_a_refusal_of_the_service_sends_nothing_out_of_a_cassette_either():
    recorded(text_reply("one"))
    with pytest.raises(LLMUnavailable, match="left alone"):
        await send(CassetteClient(Playing(TAPE), str), on_send=refuse)


async def test_who_listens_while_it_is_recorded_is_told_what_will_be_replayed():
    told: list[tuple[Delta, ...]] = []
    client = ScriptedClient(
        [
            Told(
                deltas=(TextDelta("It s"), TextDelta("ets key-1 points")),
                then=text_reply("It sets key-1 points"),
            )
        ]
    )

    def redact(text: str) -> str:
        return text.replace("key-1", "[redacted]")

    for make in (
        lambda: RecordingClient(client, Recording(TAPE), redact),
        lambda: CassetteClient(Playing(TAPE), redact),
    ):
        heard: list[Delta] = []

        async def on_delta(delta: Delta, heard: list[Delta] = heard) -> None:
            heard.append(delta)

        await send(make(), listener=Listener(on_delta, 5))
        told.append(tuple(heard))
    assert told[0] == told[1] == tuple(TextDelta(word) for word in ("It", " sets", " [redacted]", " points"))


async def test_a_call_that_was_cancelled_ends_with_its_time_if_nobody_cancels_it():
    recorded(None)
    with pytest.raises(LLMTimeout, match="when this was recorded, the call was cancelled") as caught:
        await send(CassetteClient(Playing(TAPE), str), timeout_s=0.01)
    assert (caught.value.possibly_paid, caught.value.facts["served_from"]) == (True, "cassette")


async def test_the_life_of_the_live_client_is_passed_on():
    live = ScriptedClient()
    client = RecordingClient(live, Recording(TAPE), str)
    await client.warm_up()
    await client.close()
    assert live.closed
    nothing = CassetteClient(Playing(TAPE), str)
    await nothing.warm_up(timeout_s=1)
    await nothing.close()


async def test_a_miss_is_what_the_caller_sees_and_stands_on_the_row(sqlite_url: str):
    recorded(text_reply("one"))
    async with service(sqlite_url, CassetteClient(Playing(TAPE), str)) as llm:
        with pytest.raises(LLMCassetteMiss) as caught:
            await llm.chat(request("another"))
    assert (caught.value.attempts, caught.value.facts["line"]) == ((), 1)
    outside = Outside(sqlite_url)
    (run,) = await outside.runs()
    assert (run["status"], run["error_code"], run["possibly_paid"]) == ("FAILED", "cassette_miss", False)
    await outside.close()


async def chat(settings: LLMSettings) -> tuple[str, str]:
    async with build_llm_service(settings) as llm:
        assert isinstance(llm, LLMService)
        said = await llm.chat(request())
    return said.text, said.served_from.value


async def test_services_share_the_tape_that_is_held_and_rewind_their_own():
    recorded(text_reply("one"), text_reply("two"))
    with cassette(TAPE, LLMMode.REPLAY):
        assert [await chat(ALONE) for _ in range(2)] == [("one", "cassette"), ("two", "cassette")]
    own = ALONE.model_copy(update={"mode": LLMMode.REPLAY, "cassette": TAPE})
    assert [await chat(own) for _ in range(2)] == [("one", "cassette"), ("one", "cassette")]


async def test_in_a_replay_nobody_is_asked_what_a_model_can_do_and_no_key_is_needed():
    """The provider is there, and meets no request."""
    recorded(text_reply("one"))
    with StubOllama(models=("first",)) as stub, cassette(TAPE, LLMMode.REPLAY):
        settings = isolated_settings(
            profile_balanced="gemini,ollama:first",
            default_workspace="w1",
            ollama_api_base=stub.base_url,
            persist_runs=False,
        )
        async with build_llm_service(settings) as llm:
            assert (await llm.chat(request(model="ollama:first"))).text == "one"
            route = llm.explain(request())
        assert [each.provider for each in route.kept] == ["gemini", "ollama"]
        assert list(stub.requests) == []


def test_what_is_held_beats_the_settings_until_it_is_let_go():
    assert in_force(ALONE) is ALONE
    with cassette(TAPE, LLMMode.LIVE):
        assert in_force(ALONE) is ALONE
    with cassette(Path("outer.jsonl"), LLMMode.RECORD), cassette(TAPE, LLMMode.REPLAY):
        assert (in_force(ALONE).mode, in_force(ALONE).cassette) == (LLMMode.REPLAY, TAPE)
    assert in_force(ALONE) is ALONE
    assert not Path("outer.jsonl").exists(), "nothing was recorded"


@pytest.mark.parametrize("mode", ["record", "replay"])
def test_a_mode_needs_its_file(mode: str):
    with pytest.raises(LLMSettingsError, match=f"LLM_MODE={mode}: needs LLM_CASSETTE"):
        isolated_settings(mode=mode)


async def test_a_tape_that_cannot_be_written_is_no_answer(monkeypatch: pytest.MonkeyPatch, sqlite_url: str):
    """The provider was asked: the run fails, possibly paid, and says why."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    async with service(sqlite_url, RecordingClient(ScriptedClient(), Recording(TAPE), str)) as llm:
        with pytest.raises(LLMError, match="the client failed with OSError") as caught:
            await llm.chat(request())
    assert caught.value.possibly_paid
    assert isinstance(caught.value.__cause__, OSError)
    assert not is_written()
