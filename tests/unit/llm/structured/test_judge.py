"""What a check makes of replies, without a database: refusals, further turns, and what is kept of what was refused."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from app.llm.checks import Objection, Said
from app.llm.errors import LLMContentFiltered, LLMError, LLMInternal, LLMInvalidOutput, LLMTimeout
from app.llm.messages import Message
from app.llm.structured.judge import Judge
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import FinishReason
from tests.support.ledger import request, route_of
from tests.support.service import QuickClock, rig, service, timed_out

FIRST, SECOND = route_of(request()).kept


@dataclass
class Only:
    """Accepts one text; every other one is asked again."""

    text: str
    tries: int = 2

    def objection(self, said: Said) -> Objection | None:
        text = said.parts[0].text  # type: ignore[union-attr]
        turns = (Message.assistant(text), Message.user("no"))
        return None if text == self.text else Objection(faults=("wrong",), turns=turns)


class Broken:
    tries = 1

    def objection(self, said: Said) -> Objection | None:
        raise KeyError(said)


def test_without_a_check_every_reply_counts_and_every_candidate_is_asked_alike():
    judge = Judge()
    assert judge.question(request(), FIRST) == request()
    assert judge.refusal(FIRST, text_reply("anything")) is None


def test_turns_pile_up_for_one_candidate_and_are_forgotten_with_the_next():
    judge = Judge(check=Only("yes", tries=3))
    texts = []
    for _ in range(3):
        texts.append([turn.text for turn in judge.question(request("?"), FIRST).messages])
        refusal = judge.refusal(FIRST, text_reply("no idea"))
        assert isinstance(refusal, LLMInvalidOutput)
    assert texts == [["?"], ["?", "no idea", "no"], ["?", "no idea", "no", "no idea", "no"]]
    assert not refusal.retryable
    assert [turn.text for turn in judge.question(request("?"), SECOND).messages] == ["?"]
    assert len(judge.rejected) == 3


def test_a_filtered_reply_is_what_it_is_everywhere_else():
    """So it falls back only where LLM_FALLBACK_ON names it."""
    filtered = replace(text_reply("yes"), finish_reason=FinishReason.CONTENT_FILTER)
    assert isinstance(Judge(check=Only("yes")).refusal(FIRST, filtered), LLMContentFiltered)


async def test_a_check_that_fails_is_told_as_such_and_its_send_is_recorded(db_url: str):
    async with service(db_url, ScriptedClient()) as llm:
        with pytest.raises(
            LLMInternal, match="the check of an answer of ollama:first failed with KeyError"
        ) as caught:
            await llm.chat(request(), check=Broken())
    assert [each.error_code for each in caught.value.attempts] == ["internal"]
    assert caught.value.possibly_paid
    assert isinstance(caught.value.__cause__, KeyError)


async def test_whatever_ends_a_call_the_answers_that_were_refused_are_attached(db_url: str):
    client = ScriptedClient([text_reply("a"), text_reply("b"), timed_out()])
    async with service(db_url, client) as llm:
        with pytest.raises(LLMTimeout) as caught:
            await llm.chat(request(), check=Only("yes"))
    assert [each.text for each in caught.value.facts["rejected"]] == ["a", "b"]


async def test_a_second_question_follows_at_once_and_tells_the_breaker_nothing_bad(db_url: str):
    clock = QuickClock()
    client = ScriptedClient([text_reply("no")] * 8)
    async with rig(db_url, client, clock=clock) as rigged:
        for _ in range(2):
            with pytest.raises(LLMInvalidOutput):
                await rigged.llm.chat(request(), check=Only("yes"))
        assert rigged.llm._story.breaker.health() == {}
    assert sum(clock.slept) == 0
    assert client.sends == 8


async def test_the_deadline_of_a_call_holds_for_its_questions(db_url: str):
    clock = QuickClock()

    def slow(*_: Any) -> Any:
        clock.slept.append(6.0)
        return text_reply("no")

    client = ScriptedClient([slow] * 4)
    async with rig(db_url, client, clock=clock) as rigged:
        with pytest.raises(LLMError):
            await rigged.llm.chat(request(timeout_s=10), check=Only("yes", tries=9))
    assert client.sends == 2
