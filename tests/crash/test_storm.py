"""Callers leave by the thousand, and providers and databases fail at random: the books balance all the same."""

import asyncio
import gc
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.llm.candidates import Candidate
from app.llm.client_litellm import LiteLLMClient
from app.llm.errors import LLMBadRequest, LLMError, LLMLedgerUnavailable
from app.llm.limits import Limits
from app.llm.ports import ProviderReply
from app.llm.settings import isolated_settings
from app.llm.testing import Reply, StubOllama
from app.llm.testing.client import text_reply
from app.llm.types import LLMProvider, LLMRequest, LLMResponse
from tests.support.ledger import Outside, request
from tests.support.rounds import ROUNDS, times
from tests.support.service import limited, refused, rig, timed_out

pytestmark = pytest.mark.crash
SLOTS = 4
SEED = 20_261_121
CANCELS, CALLS = times(2_000, in_short=1_000), times(20_000, in_short=500)
EXPECTED = (LLMResponse, LLMError, asyncio.CancelledError)


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


class Moody:
    """A client behind real limits: takes a few turns of the loop, then answers or fails as chance will have it."""

    def __init__(self, chance: random.Random, faults: float) -> None:
        self.limits = Limits(total=SLOTS, per_provider=dict.fromkeys(LLMProvider, SLOTS))
        self.sent: Counter[str] = Counter()
        """Sends by run id."""
        self._chance = chance
        self._faults = faults

    async def send(
        self,
        request: LLMRequest,  # noqa: ARG002  # the port's signature
        candidate: Candidate,
        *,
        run_id: str,
        workspace_id: str,
        timeout_s: float,  # noqa: ARG002
        on_send: Callable[[float], None],
    ) -> ProviderReply:
        async with self.limits.slot(candidate.provider, run_id, workspace_id) as waited_ms:
            on_send(waited_ms)
            self.sent[run_id] += 1
            for _ in range(self._chance.randrange(4)):
                await asyncio.sleep(0)
            if self._chance.random() < self._faults:
                fault = self._chance.choice((limited, refused, timed_out, _bad))
                raise fault()
            return text_reply(f"answer of {run_id}")

    async def warm_up(self, *, timeout_s: float | None = None) -> None:
        """Nothing is loaded."""

    async def close(self) -> None:
        """Nothing is open."""


def _bad() -> LLMError:
    return LLMBadRequest("no", provider="ollama")


class Storm:
    """Cancels a random one of the calls that are under way, after a random number of events."""

    def __init__(self, chance: random.Random, cancels: int) -> None:
        self.left = cancels
        self.outcomes: list[object] = []
        self._chance = chance
        self._live: list[asyncio.Task[LLMResponse]] = []
        self._countdown = 1

    def event(self, _: object = None) -> None:
        self._countdown -= 1
        if self._countdown <= 0 and self._live and self.left:
            self._countdown = self._chance.randrange(1, 20)
            self.left -= 1
            self._chance.choice(self._live).cancel()

    async def caller(self, call: Callable[[], Any]) -> None:
        """Call again and again until the storm is over."""
        while self.left:
            task = asyncio.create_task(call())
            self._live.append(task)
            self.outcomes += await asyncio.gather(task, return_exceptions=True)
            self._live.remove(task)


class Observed:
    """The client of production over a stub, with every send counted and every step of it seen."""

    def __init__(self, base_url: str, look: Callable[[], None]) -> None:
        settings = isolated_settings(ollama_api_base=base_url)
        self.limits = Limits(total=SLOTS, per_provider=dict.fromkeys(LLMProvider, SLOTS))
        self.sent: Counter[str] = Counter()
        """Sends by run id."""
        self._inner = LiteLLMClient(settings=settings, limits=self.limits)
        self._look = look

    async def send(self, *args: Any, run_id: str, on_send: Callable[[float], None], **named: Any) -> Any:
        def sent(waited_ms: float) -> None:
            on_send(waited_ms)
            self.sent[run_id] += 1
            for turns in range(4):  # the request is written, the answer is read
                loop.call_later(turns * 0.002, self._look)

        loop = asyncio.get_running_loop()
        return await self._inner.send(*args, run_id=run_id, on_send=sent, **named)

    async def warm_up(self, *, timeout_s: float | None = None) -> None:
        await self._inner.warm_up(timeout_s=timeout_s)

    async def close(self) -> None:
        await self._inner.close()


def _weather(chance: random.Random, replies: int) -> list[Reply]:
    """Return answers, slow enough to be left, and a fifth of them faults."""
    slow = Reply().after(0.005)
    faults = (Reply.rate_limited(0), Reply.status(503), Reply.status(400), Reply.reset())
    return [chance.choice(faults) if chance.random() < 0.2 else slow for _ in range(replies)]


@pytest.mark.tried(CANCELS)
@pytest.mark.timeout(60 + CANCELS // 10)
async def test_a_storm_of_cancellations_leaves_nothing_behind(db_url: str, outside: Outside):
    """I11: no STARTED row, no slot, no connection, no session, no task whose exception nobody looked at."""
    chance = random.Random(SEED + ROUNDS)  # noqa: S311  # repeatable, not secret
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    numbers = itertools.count()
    storm = Storm(chance, CANCELS)

    async def call() -> LLMResponse:
        number = next(numbers)  # three calls share a question: some of them wait for another one's flight
        return await rigged.llm.chat(
            request(f"Question {number // 3}", idempotency_key=f"k{number}" if number % 2 else None)
        )

    with StubOllama(models=("first",)) as stub:
        stub.script(*_weather(chance, 4 * CANCELS))
        client = Observed(stub.base_url, storm.event)
        async with rig(db_url, client, cache_enabled=True) as rigged:
            await client.warm_up()
            rigged.ledger.before = rigged.ledger.between = rigged.ledger.after = storm.event
            await asyncio.gather(*(storm.caller(call) for _ in range(3 * SLOTS)))
            await rigged.llm.drain()
            assert (rigged.checked_out(), client.limits.in_flight()) == (0, 0)
            _check_slots(client.limits)
            assert (rigged.repo._begun, rigged.repo._live) == (set(), {})
        assert stub.sends <= client.sent.total(), "nothing reached the provider unnoted"
        assert stub.max_in_flight <= SLOTS + stub.abandoned
        assert stub.abandoned > 0, "callers left while the provider worked"
    gc.collect()
    assert unheard == []
    assert [each for each in storm.outcomes if not isinstance(each, EXPECTED)] == []
    rows = await outside.runs()
    assert {row["status"] for row in rows} == {"SUCCEEDED", "FAILED", "CANCELLED"}
    assert all(client.sent[row["id"]] <= row["sends_noted"] for row in rows)
    paid = [row for row in rows if row["status"] == "CANCELLED" and client.sent[row["id"]]]
    assert paid, "calls were cancelled at their sends as well as in the ledger"


def _check_slots(limits: Limits) -> None:
    gates = limits._gates_of(asyncio.get_running_loop())
    free = [gates.total._value, *(gate._value for gate in gates.of.values())]
    assert (free, gates.waiting.total()) == ([SLOTS] * len(free), 0)


@pytest.mark.tried(CALLS)
@pytest.mark.timeout(60 + CALLS // 20)
async def test_after_random_faults_every_send_is_accounted_for_and_no_key_has_two_answers(
    db_url: str, outside: Outside, tmp_path: Path
):
    """I1, I5, I6, I7, I12: two hosts, one database, both unreliable; then the weather clears up."""
    chance = random.Random(SEED * ROUNDS)  # noqa: S311
    keys = CALLS * 3 // 5
    client = Moody(chance, faults=0.25)
    answers: dict[str, set[str]] = defaultdict(set)
    settings: dict[str, Any] = {"finish_budget_s": 0.2, "lease_grace_s": 15}

    async def ask(rigged: Any, key: str) -> None:
        try:
            answer = await rigged.llm.chat(request(idempotency_key=key))
        except LLMError:
            return
        answers[key].add(answer.text)

    async with (
        rig(db_url, client, spool_dir=tmp_path / "a", **settings) as one,
        rig(db_url, client, spool_dir=tmp_path / "b", **settings) as two,
    ):
        for host in (one, two):
            _make_unreliable(host.ledger, chance)
        for _ in range(CALLS // 20):
            await asyncio.gather(
                *(ask(chance.choice((one, two)), f"k{chance.randrange(keys)}") for _ in range(20))
            )
        await asyncio.gather(one.llm.drain(), two.llm.drain())
        await _check_books(
            outside,
            client,
            {each.run_id for host in (one, two) for each in host.repo._spooling._spool.pending},
        )
        for host in (one, two):
            host.ledger.before = host.ledger.between = host.ledger.after = lambda _: None
        assert (one.checked_out(), two.checked_out(), client.limits.in_flight()) == (0, 0, 0)

    assert _spools(tmp_path) == []
    await _check_books(outside, client, set())
    assert {key: texts for key, texts in answers.items() if len(texts) > 1} == {}
    await outside.end_leases()
    calm = Moody(chance, faults=0.0)
    async with rig(db_url, calm, spool_dir=tmp_path / "c") as last:
        for key in sorted(answers):
            answer = await last.llm.chat(request(idempotency_key=key))
            assert {answer.text} == answers[key], "whoever had an answer gets it again"
    assert calm.sent.total() == 0


def _spools(folder: Path) -> list[Path]:
    return list(folder.rglob("*.spool"))


def _make_unreliable(ledger: Any, chance: random.Random) -> None:
    def fault(_: str) -> None:
        if chance.random() < 0.05:
            raise LLMLedgerUnavailable("a random fault of the database")

    ledger.before = ledger.between = ledger.after = fault


async def _check_books(outside: Outside, client: Moody, spooled: set[str]) -> None:
    """Every send has its attempt row, or its spool line, or was noted by a run whose end nobody wrote."""
    rows = {row["id"]: row for row in await outside.runs()}
    assert set(client.sent) <= set(rows), "I6: a row before each send"
    for run_id, row in rows.items():
        written = len(await outside.attempts(run_id))
        if row["status"] in {"STARTED", "ABANDONED"}:
            assert client.sent[run_id] <= row["sends_noted"] or run_id in spooled
        else:
            assert client.sent[run_id] == written
    holders = Counter((row["workspace_id"], row["idem_slot"]) for row in rows.values() if row["idem_slot"])
    assert [holder for holder, count in holders.items() if count > 1] == []
