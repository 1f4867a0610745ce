"""What is recorded from real sockets is replayed without them: the same program sees the same, and nobody is asked."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent

from app.bootstrap import build_llm_service
from app.llm.cassettes.held import cassette
from app.llm.cassettes.tapes import read
from app.llm.errors import LLMCassetteMiss, LLMError, LLMInvalidOutput, LLMNoCandidate, LLMSettingsError
from app.llm.messages import FilePart, Message, ToolResultPart, ToolSpec
from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.service import LLMService
from app.llm.settings import LLMMode
from app.llm.testing import End, Reply, StubGemini, StubOllama, Thought
from app.llm.types import LLMRequest, ServedFrom
from tests.security.services import Stubs
from tests.support import programs
from tests.support.ledger import FIRST, GEMINI_KEY, ROOT, Outside, request, settings_for

Program = Callable[[LLMService], Awaitable[Any]]
TAPE = Path("cassettes/tape.jsonl")


class Ticket(BaseModel):
    team: str
    urgent: bool


@pytest.fixture
def stubs() -> Iterator[Stubs]:
    ollama = StubOllama(models=("first",))
    with ollama, StubGemini(models=("second",), api_key=GEMINI_KEY) as gemini:
        yield Stubs(ollama, gemini)


@asynccontextmanager
async def opened(
    mode: str, stubs: Stubs | None, ledger: str = "", **values: Any
) -> AsyncIterator[LLMService]:
    """Yield a service in a mode; without stubs there is nobody to ask, and no key."""
    bases = {"ollama_api_base": "http://127.0.0.1:9", "gemini_api_base": "http://127.0.0.1:9/v1beta"}
    if stubs is not None:
        bases = {"ollama_api_base": stubs.ollama.base_url, "gemini_api_base": stubs.gemini.base_url}
    else:
        values = {"gemini_api_key": None, **values}
    url = ledger or f"sqlite+aiosqlite:///{mode}.db"
    settings = settings_for(url, mode=mode, cassette=TAPE, learn_timeout_s=1, **{**bases, **values})
    async with build_llm_service(settings) as llm:
        yield llm


async def both(program: Program, stubs: Stubs, **values: Any) -> tuple[Any, Any]:
    """Return what a program sees while it is recorded, and what it sees in the replay."""
    async with opened("record", stubs, **values) as llm:
        recorded = await program(llm)
    sends = stubs.ollama.sends + stubs.gemini.sends
    assert len(read(TAPE)) == sends > 0
    async with opened("replay", None, **values) as llm:
        replayed = await program(llm)
    assert stubs.ollama.sends + stubs.gemini.sends == sends
    return recorded, replayed


def text() -> str:
    return TAPE.read_text()


def rewritten(text: str) -> None:
    TAPE.write_text(text)


async def outcome(llm: LLMService, asked: LLMRequest) -> tuple[Any, ...]:
    """Return all that a caller can see of a call, but when it was and who answered it now."""
    try:
        said = await llm.chat(asked)
    except LLMError as error:
        facts = {
            name: error.facts.get(name) for name in ("provider", "model", "http_status", "retry_after_s")
        }
        return (
            type(error), error.message, facts, error.possibly_paid, error.retryable,
            [(each.provider, each.error_code, each.http_status) for each in error.attempts],
        )  # fmt: skip
    return (
        said.parts, said.finish_reason, said.usage, said.cost_usd, said.provider, said.model, said.route,
        [(each.provider, each.status, each.error_code, each.usage, each.cost_usd) for each in said.attempts],
    )  # fmt: skip


ANSWERS = {
    "text": (Reply.text("It sets points.", usage=(9, 4)), {}),
    "thoughts": (Reply.text("Twelve.", thinking="hm"), {"thinking": True}),
    "cut off": (Reply.text("It", finish="length", usage=(9, 1)), {"max_output_tokens": 1}),
    "tools": (
        Reply.tool_call("lever", {"number": 12, "to": None}, more=[("lever", {"number": 13})]),
        {"tools": (ToolSpec(name="lever"),)},
    ),
    "no counts": (Reply.no_usage("Yes."), {}),
    "refused": (Reply.status(400), {}),
    "no model": (Reply.status(404), {}),
    "filtered": (Reply.blocked(), {"model": "gemini:second"}),
    "a recording": (
        Reply.text("A bell."),
        {
            "model": "gemini:second",
            "messages": (Message.user("Hear", FilePart(data=b"RIFF\x00", media_type="audio/wav")),),
        },
    ),
}


@pytest.mark.parametrize(("reply", "fields"), ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_or_an_error_is_replayed_as_it_was(
    stubs: Stubs, reply: Reply, fields: dict[str, Any]
):
    stub = stubs.gemini if "gemini" in fields.get("model", "") else stubs.ollama
    stub.script(reply)
    asked = request().model_copy(update=fields)
    recorded, replayed = await both(lambda llm: outcome(llm, asked), stubs)
    assert replayed == recorded


async def test_retries_and_fallbacks_are_replayed_and_nobody_waits_for_them(stubs: Stubs):
    """The 429 asks for an hour: a replay that waited would be over its deadline, as the recording's call would be."""
    stubs.ollama.script(Reply.busy(), Reply.status(500), Reply.text("At last."), Reply.rate_limited(3600))
    stubs.gemini.script(Reply.rate_limited(1), Reply.text("From afar."), Reply.text("Here."))

    async def program(llm: LLMService) -> list[Any]:
        return [await outcome(llm, request(word)) for word in ("one", "two", "three")]

    recorded, replayed = await both(program, stubs)
    assert replayed == recorded
    assert [len(each[-1]) for each in replayed] == [4, 1, 2]


async def test_the_waits_of_retries_are_skipped(stubs: Stubs):
    """Thirty recorded seconds, and the rates of a provider that nobody asks."""
    stubs.ollama.script(Reply.rate_limited(30))
    async with opened("record", stubs, profile_balanced=FIRST, attempts_per_candidate=1) as llm:
        await outcome(llm, request())
    line = json.loads(text())
    answer = {
        **line,
        "response": {"finish_reason": "stop", "parts": [{"type": "text", "text": "ok"}], "usage": {}},
    }
    rewritten(f"{json.dumps(line)}\n{json.dumps(answer)}\n")
    async with opened("replay", None, profile_balanced=FIRST, ollama_requests_per_minute=1) as llm:
        said = await asyncio.wait_for(llm.chat(request(timeout_s=90)), 20)
    assert said.text == "ok"
    assert [each.retry_after_s for each in said.attempts] == [30.0, None]


async def test_a_replay_waits_for_no_turn(stubs: Stubs):
    async def program(llm: LLMService) -> list[Any]:
        return [await outcome(llm, request(f"question {n}", model=FIRST, timeout_s=20)) for n in range(3)]

    async with opened("record", stubs) as llm:
        recorded = await program(llm)
    for shared in (False, True):
        async with opened("replay", None, ollama_requests_per_minute=1, shared_rates=shared) as llm:
            assert await program(llm) == recorded


async def test_a_stream_is_told_in_words_and_adds_up_to_the_answer(stubs: Stubs):
    stubs.ollama.script(
        Reply.stream(Thought("hm, "), Thought("boxes"), "It se", "ts\n points. ", usage=(9, 4))
    )

    async def program(llm: LLMService) -> Any:
        async with llm.stream(request(thinking=True)) as stream:
            *deltas, last = [each async for each in stream]
            return deltas, last.parts, stream.answering

    recorded, replayed = await both(program, stubs)
    assert replayed == recorded
    deltas, parts, answering = replayed
    assert [delta.text for delta in deltas] == ["hm,", " boxes", "It", " sets", "\n points.", " "]
    assert "".join(delta.text for delta in deltas[2:]) == parts[-1].text
    assert answering.model == "first"


async def test_a_stream_that_broke_breaks_again_at_the_same_word(stubs: Stubs):
    stubs.ollama.script(Reply.stream("It sets ", "points", end=End.BROKEN))

    async def program(llm: LLMService) -> Any:
        told: list[str] = []

        async def listen() -> None:
            async with llm.stream(request()) as stream:
                async for delta in stream:
                    told.append(delta.text)  # noqa: PERF401  # it breaks off

        with pytest.raises(LLMError) as caught:
            await listen()
        return told, type(caught.value), caught.value.message, caught.value.possibly_paid

    recorded, replayed = await both(program, stubs)
    assert replayed == recorded
    assert replayed[0] == ["It", " sets", " points"]


async def test_a_stream_that_was_left_and_a_call_that_was_cancelled_are_left_again(stubs: Stubs):
    stubs.ollama.script(Reply.stream("one ", "two ", "three"), Reply.text("four"))

    async def program(llm: LLMService) -> Any:
        async with llm.stream(request("left")) as stream:
            first = await anext(aiter(stream))
        with stubs.ollama.hold():  # no answer comes before the call is cancelled
            call = asyncio.create_task(llm.chat(request("cancelled")))
            await asyncio.to_thread(stubs.ollama.wait_for_sends, 2)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
        return first, call.cancelled()

    recorded, replayed = await both(program, stubs)
    assert recorded == replayed
    assert replayed[1] is True
    lines = [json.loads(line)["response"] for line in text().splitlines()]
    assert lines[1] == {"error": "cancelled"}


async def test_a_checked_answer_is_asked_for_again_and_the_second_question_is_another(stubs: Stubs):
    stubs.ollama.script(Reply.json({"team": "signals"}), Reply.json({"team": "signals", "urgent": True}))

    async def program(llm: LLMService) -> Any:
        checked = await llm.structured(Ticket, request("Points 12 do not lock."))
        return checked.value, checked.response.parts, len(checked.response.attempts)

    recorded, replayed = await both(program, stubs)
    assert replayed == recorded
    assert replayed[0] == Ticket(team="signals", urgent=True)


async def test_a_conversation_with_tools_goes_on_from_what_was_replayed(stubs: Stubs):
    """The ids of calls are made anew, and the second request still finds its answer."""
    stubs.ollama.script(Reply.tool_call("lever", {"number": 12}), Reply.text("Locked."))

    async def program(llm: LLMService) -> Any:
        asked = request("Lock 12", tools=(ToolSpec(name="lever"),))
        first = await llm.chat(asked)
        result = ToolResultPart(id=first.tool_calls[0].id, name="lever", content="locked")
        turns = (*asked.messages, Message.assistant(*first.parts), Message.tool(result))
        return (await llm.chat(asked.model_copy(update={"messages": turns}))).text

    assert await both(program, stubs) == ("Locked.", "Locked.")


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_an_agent_with_tools_is_replayed_step_by_step(stubs: Stubs, *, streamed: bool):
    stubs.ollama.script(
        Reply.tool_call("lever", {"number": 12}, usage=(20, 5)),
        Reply.status(500),
        Reply.json({"team": "signals", "urgent": True}, usage=(30, 6)),
    )
    stubs.gemini.script(Reply.tool_call("final_result", {"team": "signals", "urgent": True}, usage=(31, 7)))

    async def program(llm: LLMService) -> Any:
        agent = Agent(PydanticAiLiteLLMModel(llm), output_type=Ticket, name="triage")
        pulled: list[int] = []

        @agent.tool_plain
        def lever(number: int) -> str:
            """Pull a lever."""
            pulled.append(number)
            return "stuck"

        if streamed:
            async with agent.run_stream("Points 12 do not lock.") as result:
                output, usage = await result.get_output(), result.usage
        else:
            done = await agent.run("Points 12 do not lock.")
            output, usage = done.output, done.usage
        return output, pulled, (usage.requests, usage.input_tokens, usage.output_tokens)

    recorded, replayed = await both(program, stubs)
    assert replayed == recorded
    assert replayed[0] == Ticket(team="signals", urgent=True)
    assert replayed[1] == [12]


async def test_equal_calls_at_once_get_each_answer_once(stubs: Stubs):
    stubs.ollama.script(*(Reply.text(f"answer {n}") for n in range(8)))

    async def program(llm: LLMService) -> list[str]:
        asked = request(cache="bypass")
        return [said.text for said in await asyncio.gather(*(llm.chat(asked) for _ in range(8)))]

    recorded, replayed = await both(program, stubs)
    assert sorted(replayed) == sorted(recorded) == [f"answer {n}" for n in range(8)]
    again = await both_replays(program)
    assert again[0] == again[1] == replayed


async def both_replays(program: Program) -> list[Any]:
    told = []
    for _ in range(2):
        async with opened("replay", None) as llm:
            told.append(await program(llm))
    return told


async def test_calls_stand_in_the_order_in_which_they_began_however_they_ended(stubs: Stubs):
    gate = stubs.ollama.gate()
    stubs.ollama.script(Reply.stream(gate, "late"), Reply.text("early"))
    async with opened("record", stubs) as llm:
        late = asyncio.create_task(llm.chat(request("first")))
        await asyncio.to_thread(stubs.ollama.wait_for_sends, 1)
        await llm.chat(request("second"))
        gate.release()
        await late
    asked = [each.asked.content["messages"][0]["content"][0]["text"] for each in read(TAPE).values()]  # type: ignore[index,call-overload]
    assert asked == ["first", "second"]


async def test_two_recordings_of_one_program_are_the_same_file(stubs: Stubs):
    stubs.ollama.always(Reply.tool_call("lever", {"number": 12}, usage=(9, 4)))
    texts = []
    for number in range(2):
        async with opened("record", stubs, ledger=f"sqlite+aiosqlite:///{number}.db") as llm:
            await llm.chat(
                request(
                    tools=(ToolSpec(name="lever"),), metadata={"run": number}, idempotency_key=str(number)
                )
            )
        texts.append(text())
    assert texts[0] == texts[1]
    assert texts[0].count("\n") == 1


async def test_a_recording_keeps_only_what_was_used(stubs: Stubs):
    async with opened("record", stubs) as llm:
        await llm.chat(request("old"))
    async with opened("record", stubs, ledger="sqlite+aiosqlite:///new.db") as llm:
        await llm.chat(request("new"))
    assert "old" not in text()
    async with opened("record", stubs):
        assert len(read(TAPE)) == 1, "who calls nobody overwrites nothing"


async def test_services_of_one_test_share_a_tape_whatever_their_settings_say(stubs: Stubs):
    """As the plugin of pytest does it: the second service goes on where the first one was."""
    stubs.ollama.script(Reply.text("one"), Reply.text("two"))

    async def program(mode: LLMMode) -> list[str]:
        told = []
        with cassette(TAPE, mode):
            for number in range(2):
                url = f"sqlite+aiosqlite:///{mode}{number}.db"
                async with opened("live", stubs if mode is LLMMode.RECORD else None, ledger=url) as llm:
                    told.append((await llm.chat(request())).text)
        return told

    assert await program(LLMMode.RECORD) == await program(LLMMode.REPLAY) == ["one", "two"]
    assert stubs.ollama.sends == 2
    async with opened("live", stubs) as llm:
        assert (await llm.chat(request())).served_from is ServedFrom.LIVE, "it is held no longer"


async def test_what_no_key_is_there_for_is_replayed_and_never_asked(stubs: Stubs):
    stubs.gemini.script(Reply.text("From afar."))
    asked = request(model="gemini:second")
    assert await both(lambda llm: outcome(llm, asked), stubs)
    with pytest.raises(LLMNoCandidate):
        async with opened("live", None) as llm:
            await llm.chat(asked)


async def test_the_ledger_says_where_the_answer_came_from(stubs: Stubs, db_url: str):
    async with opened("record", stubs) as llm:
        live = await llm.chat(request())
    async with opened("replay", None, ledger=db_url) as llm:
        said = await llm.chat(request(idempotency_key="k1"))
        again = await llm.chat(request(idempotency_key="k1"))
    assert (live.served_from, said.served_from, again.served_from) == ("live", "cassette", "replay")
    assert said.usage == live.usage
    outside = Outside(db_url)
    (run,) = await outside.runs()
    assert (run["status"], run["usage_source"]) == ("SUCCEEDED", "cassette")
    await outside.close()


# -- a miss


async def missed(llm: LLMService, asked: LLMRequest) -> LLMCassetteMiss:
    with pytest.raises(LLMCassetteMiss) as caught:
        await llm.chat(asked)
    return caught.value


async def test_a_miss_shows_the_nearest_request_and_where_it_differs(stubs: Stubs):
    async with opened("record", stubs) as llm:
        for text in ("What is a semaphore?", "What is a signal box?", "Who invented it?"):
            await llm.chat(request(text))
    async with opened("replay", None) as llm:
        error = await missed(llm, request("What is a signalbox?"))
    assert error.facts["line"] == 2
    assert error.facts["path"] == "$.request.messages[0].content[0].text"
    assert error.facts["nearest"]["candidate"] == FIRST
    assert "What is a signal box?" in error.message
    assert "What is a signalbox?" in error.message
    assert "LLM_MODE=record" in error.message
    assert error.attempts == ()


async def test_a_miss_is_no_reason_to_ask_somebody_else_and_stands_on_the_row(stubs: Stubs, sqlite_url: str):
    async with opened("record", stubs) as llm:
        await llm.chat(request(model="gemini:second"))
    async with opened("replay", None, ledger=sqlite_url) as llm:
        error = await missed(llm, request())
    assert error.facts["path"] == "$.candidate"
    outside = Outside(sqlite_url)
    (run,) = await outside.runs()
    assert (run["status"], run["error_code"]) == ("FAILED", "cassette_miss")
    await outside.close()


async def test_once_more_than_recorded_is_a_miss(stubs: Stubs):
    async with opened("record", stubs) as llm:
        await llm.chat(request())
    async with opened("replay", None) as llm:
        await llm.chat(request())
        error = await missed(llm, request())
    assert "has 1 answers to this request" in error.message


async def test_without_a_file_every_call_is_a_miss_that_says_so():
    async with opened("replay", None) as llm:
        error = await missed(llm, request())
    assert "cassettes/tape.jsonl is not there" in error.message


async def test_a_line_that_is_none_is_refused_at_start_with_its_number(stubs: Stubs):
    async with opened("record", stubs) as llm:
        await llm.chat(request())
    rewritten(text() + '\n{"candidate": "ollama:first"}\n')
    with pytest.raises(LLMSettingsError, match="line 3 is no recorded call: KeyError: 'v'"):
        async with opened("replay", None):
            pass


async def test_a_check_that_nothing_passes_ends_in_the_same_error(stubs: Stubs):
    stubs.ollama.always(Reply.text("no JSON at all"))

    async def program(llm: LLMService) -> Any:
        with pytest.raises(LLMInvalidOutput) as caught:
            await llm.structured(Ticket, request(), tries=2)
        return [each.text for each in caught.value.rejected]

    recorded, replayed = await both(program, stubs, profile_balanced=FIRST)
    assert replayed == recorded == ["no JSON at all"] * 2


# -- a process that dies

KILLED = """
import asyncio, os, signal
from pathlib import Path
from app.bootstrap import build_llm_service
from app.llm import LLMRequest, Message
from app.llm.cassettes.clients import RecordingClient
from app.llm.cassettes.tapes import Recording
from app.llm.testing.client import ScriptedClient

replace, times = Path.replace, []

def killed(new, old):
    times.append(new)
    if len(times) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(new, old)

Path.replace = killed

async def main():
    client = RecordingClient(ScriptedClient(), Recording(Path("tape.jsonl")), str)
    async with build_llm_service(client=client) as llm:
        for number in range(4):
            await llm.chat(LLMRequest(messages=(Message.user(f"number {number}"),)))

asyncio.run(main())
"""


def test_a_process_that_is_killed_while_it_writes_leaves_whole_lines(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LLM_DEFAULT_WORKSPACE": "w1"}
    done = programs.run(
        [sys.executable, "-c", KILLED],
        cwd=tmp_path,
        env=environment,
        check=False,
        timeout=55,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert len(read(tmp_path / "tape.jsonl")) == 2
