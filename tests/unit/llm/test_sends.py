"""The sends of one run, without a database: their order, their records, their deadline."""

import asyncio
from typing import Any

import pytest

from app.core.clock import SystemClock
from app.llm.breaker import THRESHOLD, Breaker
from app.llm.budgets import Reservation
from app.llm.errors import LLMAuth, LLMContextExceeded, LLMError, LLMFenced, LLMInternal, LLMTimeout
from app.llm.persistence.memory import MemoryRunRepo
from app.llm.ports import StoredAnswer
from app.llm.rates import Rates
from app.llm.retry import RetryPolicy
from app.llm.sends import Deadline, Sends
from app.llm.settings import RetryPossiblyPaid
from app.llm.telemetry import Telemetry
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import TokenUsage
from tests.support.ledger import new_run, request, response
from tests.support.service import limited, refused, timed_out


class FrozenClock(SystemClock):
    """Time that moves only when somebody waits."""

    __slots__ = ("at_s", "slept")

    def __init__(self) -> None:
        self.at_s, self.slept = 100.0, []

    def monotonic_s(self) -> float:
        return self.at_s

    async def sleep_s(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at_s += seconds


class Notes(MemoryRunRepo):
    """Remembers which sends were noted; refuses the one it is told to."""

    def __init__(self, clock: Any, *, refuse: int | None = None) -> None:
        super().__init__(clock=clock, cache_ttl_s=1)
        self.noted: list[int] = []
        self.refuse = refuse

    async def note_send(self, run_id: str, sends: int, more: Reservation | None = None) -> None:  # noqa: ARG002
        if sends == self.refuse:
            raise LLMFenced("lost", run_id=run_id)
        self.noted.append(sends)


def _sends(
    client: Any, *, total_s: float = 60.0, cached: Any = None, repo: Any = None, **policy: Any
) -> Sends:
    clock = FrozenClock()

    async def nothing(_: Any) -> StoredAnswer | None:
        return None

    rules = {
        "max_attempts": 4,
        "attempts_per_candidate": 2,
        "retry_possibly_paid": RetryPossiblyPaid.FALLBACK_ONLY,
    }
    return Sends(
        run=new_run(request()),
        client=client,
        repo=repo or Notes(clock),
        policy=RetryPolicy(**{**rules, **policy}),
        attempt_cap_s=30.0,
        deadline=Deadline.after(clock, total_s),
        telemetry=Telemetry(),
        breaker=Breaker(clock),
        rates=Rates(clock),
        jitter=lambda: 0.5,
        cached=cached or nothing,
        learn=lambda *_: None,
    )


async def test_the_first_send_needs_no_note_and_each_further_one_has_its_own():
    """I6: the claim has noted the first."""
    sends = _sends(ScriptedClient([limited(), refused(), text_reply("yes")]))
    candidate, reply = await sends.until_answered()
    assert (candidate.name, reply.parts[0].text) == ("gemini:second", "yes")  # type: ignore[union-attr]
    assert sends.repo.noted == [2, 3]  # type: ignore[attr-defined]
    assert [each.ordinal for each in sends.attempts] == [1, 2, 3]
    assert [each.status for each in sends.attempts] == ["FAILED", "FAILED", "SUCCEEDED"]


async def test_a_note_that_is_refused_ends_the_sends():
    client = ScriptedClient([limited(), text_reply("never")])
    sends = _sends(client)
    sends.repo = Notes(sends.deadline.clock, refuse=2)
    with pytest.raises(LLMFenced):
        await sends.until_answered()
    assert client.sends == len(sends.attempts) == 1


async def test_a_fallback_candidates_cached_answer_is_looked_up_once_and_served():
    asked: list[str] = []

    async def cached(candidate: Any) -> StoredAnswer:
        asked.append(candidate.name)
        return StoredAnswer(
            run_id="r", candidate_sha256="c", request_sha256="q", response=response(new_run())
        )

    client = ScriptedClient([limited(), limited()])
    candidate, answer = await _sends(client, cached=cached).until_answered()
    assert isinstance(answer, StoredAnswer)
    assert (candidate.name, asked, client.sends) == ("gemini:second", ["gemini:second"], 2)


async def test_an_error_that_another_candidate_would_get_too_is_final():
    client = ScriptedClient([LLMAuth("401", provider="ollama", http_status=401)])
    with pytest.raises(LLMAuth) as caught:
        await _sends(client).until_answered()
    assert client.sends == 1
    assert [each.http_status for each in caught.value.attempts] == [401]


@pytest.mark.parametrize(("named", "sends"), [((), 1), (("auth",), 2)])
async def test_the_settings_may_name_errors_that_fall_back(named: tuple[str, ...], sends: int):
    client = ScriptedClient([LLMAuth("401"), text_reply("yes")])
    try:
        await _sends(client, fallback_on=named).until_answered()
    except LLMError:
        assert not named
    assert client.sends == sends


async def test_a_prompt_that_did_not_fit_goes_to_a_larger_window_only():
    client = ScriptedClient([LLMContextExceeded("too long"), text_reply("fits")])
    sends = _sends(client)
    first, second = sends.run.route.kept
    assert second.caps.max_context_tokens > first.caps.max_context_tokens
    assert (await sends.until_answered())[0] == second


async def test_usage_of_a_failed_send_is_recorded():
    usage = TokenUsage(input_tokens=7, output_tokens=0)
    client = ScriptedClient([limited().with_facts(usage=usage), text_reply("yes")])
    sends = _sends(client)
    await sends.until_answered()
    assert sends.attempts[0].usage == usage


async def test_what_is_left_of_the_deadline_bounds_each_send():
    seen: list[float] = []

    class Slow(ScriptedClient):
        async def send(self, *_: Any, timeout_s: float, **kw: Any) -> Any:
            seen.append(timeout_s)
            sends.deadline.clock.at_s += timeout_s  # type: ignore[attr-defined]
            kw["on_send"](0.0)
            raise timed_out()

    sends = _sends(Slow(), total_s=10.0)
    with pytest.raises(LLMTimeout) as caught:
        await sends.until_answered()
    assert seen == [8.0, 2.0]  # a fifth of the whole is kept back for the candidate to come
    assert caught.value.possibly_paid
    assert sends.deadline.left_s() == 0


async def test_when_the_time_is_over_before_the_first_send_nothing_is_sent():
    client = ScriptedClient()
    sends = _sends(client, total_s=5.0)
    sends.deadline.clock.at_s += 6.0  # type: ignore[attr-defined]
    with pytest.raises(LLMTimeout) as caught:
        await sends.until_answered()
    assert (client.sends, sends.attempts, caught.value.possibly_paid) == (0, [], False)


async def test_a_wait_longer_than_the_deadline_is_not_waited_for():
    errors = [limited().with_facts(retry_after_s=3600.0) for _ in range(2)]
    sends = _sends(ScriptedClient(list(errors)))
    with pytest.raises(LLMError) as caught:
        await sends.until_answered()
    assert sends.deadline.clock.slept == []  # type: ignore[attr-defined]
    assert caught.value.retry_after_s == 3600.0
    assert [each.model for each in sends.attempts] == ["first", "second"]


async def test_a_wait_that_the_provider_asked_for_is_kept():
    sends = _sends(ScriptedClient([limited().with_facts(retry_after_s=4.0)]))
    await sends.until_answered()
    assert sends.deadline.clock.slept == [4.0]  # type: ignore[attr-defined]


async def test_time_in_the_queue_is_no_part_of_a_send():
    class Queued(ScriptedClient):
        async def send(self, *args: Any, **kw: Any) -> Any:
            sends.deadline.clock.at_s += 2.0  # type: ignore[attr-defined]
            kw["on_send"](2000.0)
            return await ScriptedClient.send(self, *args, **{**kw, "on_send": lambda _: None})

    sends = _sends(Queued())
    await sends.until_answered()
    assert sends.queue_wait_ms == 2000


async def test_who_finds_the_circuit_open_does_not_queue_for_a_slot():
    queued: list[str] = []

    class Queue(ScriptedClient):
        async def send(self, request: Any, candidate: Any, **kw: Any) -> Any:
            queued.append(candidate.name)
            return await ScriptedClient.send(self, request, candidate, **kw)

    sends = _sends(Queue([refused()] * THRESHOLD), attempts_per_candidate=THRESHOLD)
    await sends.until_answered()
    assert queued == ["ollama:first"] * THRESHOLD + ["gemini:second"]
    queued.clear()
    await sends.until_answered()
    assert queued == ["gemini:second"]


async def test_a_call_that_is_refused_at_the_end_of_the_queue_has_no_attempt_and_its_wait():
    class Queue(ScriptedClient):
        async def send(self, request: Any, candidate: Any, **kw: Any) -> Any:
            if candidate.name == "ollama:first":  # while this call waits, others find it dead
                for _ in range(THRESHOLD):
                    permit = sends.breaker.begin(candidate.name)
                    assert permit is not None
                    sends.breaker.report(permit, refused(), had_s=30)
                kw["on_send"](1000.0)
            return await ScriptedClient.send(self, request, candidate, **kw)

    client = Queue()
    sends = _sends(client)
    candidate, _ = await sends.until_answered()
    assert candidate.name == "gemini:second"
    assert (client.sends, [each.model for each in sends.attempts]) == (1, ["second"])
    assert sends.queue_wait_ms == 1000
    assert sends.repo.noted == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("ends", [timed_out(), asyncio.CancelledError()])
async def test_a_wait_that_ends_without_a_slot_is_counted_too(ends: BaseException):
    class Queue(ScriptedClient):
        async def send(self, *_: Any, **__: Any) -> Any:
            sends.deadline.clock.at_s += 2.0  # type: ignore[attr-defined]
            raise ends

    sends = _sends(Queue(), max_attempts=1)
    with pytest.raises(type(ends)):
        await sends.until_answered()
    assert (sends.queue_wait_ms, sends.attempts) == (2000, [])


async def test_a_client_that_fails_before_its_send_has_not_paid():
    class Broken(ScriptedClient):
        async def send(self, *_: Any, **__: Any) -> Any:
            raise ValueError

    with pytest.raises(LLMInternal, match="ValueError") as caught:
        await _sends(Broken()).until_answered()
    assert caught.value.possibly_paid is False
