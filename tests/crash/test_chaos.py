"""Providers and databases fail at random, and owners die: the books balance, and no key has two answers."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.llm.errors import LLMError, LLMLedgerUnavailable
from app.llm.types import LLMResponse
from tests.crash.weather import Moody, Observed, Stubs
from tests.support.ledger import Outside, request
from tests.support.rounds import in_full
from tests.support.service import Rig, rig

pytestmark = pytest.mark.crash
SEED = 20_261_121
CALLS, CALLS_OVER_HTTP = in_full(20_000, in_short=500), in_full(20_000, in_short=300)


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


@pytest.mark.tried(CALLS)
@pytest.mark.timeout(60 + CALLS // 20)
async def test_after_random_faults_every_send_is_accounted_for_and_no_key_has_two_answers(
    db_url: str, outside: Outside, tmp_path: Path, turn: int
):
    """I1, I5, I6, I7, I12: two hosts, one database, both unreliable, and owners that die; then the weather clears up."""
    chance = random.Random(SEED + turn)  # noqa: S311
    chaos = Chaos(db_url, outside, tmp_path, Moody(chance, faults=0.25), chance)
    await chaos.rages(CALLS)
    assert chaos.spooled > 0


@pytest.mark.tried(CALLS_OVER_HTTP)
@pytest.mark.timeout(60 + CALLS_OVER_HTTP // 10)
async def test_after_random_faults_over_http_no_provider_was_asked_unnoted(
    db_url: str, outside: Outside, tmp_path: Path, turn: int
):
    """I1, I5, I6, I7, I12: the same with the client of production; the providers count what reached them."""
    chance = random.Random(SEED + turn)  # noqa: S311
    with Stubs(chance, 4 * CALLS_OVER_HTTP) as stubs:
        client = Observed(stubs)
        await client.warm_up()
        try:
            await Chaos(db_url, outside, tmp_path, client, chance).rages(CALLS_OVER_HTTP)
        finally:
            await client.close()
        assert stubs.sends == client.sent.total(), "every send was noted, and no send was made twice"
        assert all(stub.sends > 0 for stub in stubs.both)


class Chaos:
    """Calls with random keys on two hosts whose database fails; now and then a third host comes, works, and dies."""

    def __init__(
        self, url: str, outside: Outside, folder: Path, client: Moody | Observed, chance: random.Random
    ) -> None:
        self._url, self._outside, self._folder = url, outside, folder
        self._client, self._chance = client, chance
        self._answers: dict[str, set[str]] = defaultdict(set)
        self._dead: set[str] = set()
        """Runs whose owner died."""
        self.spooled = 0
        """Answers that the database had not taken when they were returned."""

    async def rages(self, calls: int) -> None:
        keys = [f"k{n}" for n in range(calls * 3 // 5)]
        async with self._host("a") as one, self._host("b", finish_budget_s=0.05) as two:  # b asks only once
            for host in (one, two):
                _make_unreliable(host.ledger, self._chance)
            for batch in range(calls // 20):
                if batch % 5 == 0:
                    await self._a_host_dies(f"dead {batch}", self._chance.sample(keys, 4))
                await asyncio.gather(
                    *(
                        self._ask(self._chance.choice((one, two)), self._chance.choice(keys))
                        for _ in range(20)
                    )
                )
            await asyncio.gather(one.llm.drain(), two.llm.drain())
            pending = (each for host in (one, two) for each in host.repo._spooling._spool.pending)
            await self._check_books({each.run_id for each in pending})
            for host in (one, two):
                host.ledger.before = host.ledger.between = host.ledger.after = lambda _: None
            assert (one.checked_out(), two.checked_out(), self._client.limits.in_flight()) == (0, 0, 0)
        assert list(self._folder.rglob("*.spool")) == []
        await self._check_books(set())
        await self._check_the_dead()
        await self._check_answers()

    @asynccontextmanager
    async def _host(self, name: str, **settings: Any) -> AsyncIterator[Rig]:
        """Yield a host with a spool of its own; the client outlives it, and no lease ends unless it is moved."""
        settings = {
            "finish_budget_s": 0.2,
            "lease_grace_s": 3600,
            "spool_dir": self._folder / name,
            **settings,
        }
        async with rig(self._url, Lent(self._client), **settings) as host:
            yield host

    async def _ask(self, host: Rig, key: str) -> None:
        try:
            answer = await host.llm.chat(request(idempotency_key=key))
        except LLMError:
            return
        self._answers[key].add(answer.text)
        self.spooled += not answer.persisted

    async def _a_host_dies(self, owner: str, keys: list[str]) -> None:
        """Send, and take to the grave how it ended: neither the database nor a spool hears of it, nor any caller."""
        nowhere = self._folder / "no directory"
        nowhere.touch()
        async with self._host("", owner=owner, spool_dir=nowhere) as host:
            host.ledger.away_for = {"finish"}
            asked = (host.llm.chat(request(idempotency_key=key)) for key in keys)
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            assert [each for each in outcomes if not isinstance(each, LLMResponse | LLMError)] == []
        for row in await self._outside.runs(owner=owner, status="STARTED"):
            self._dead.add(row["id"])
            await self._outside.end_lease(row["id"])

    async def _check_books(self, spooled: set[str]) -> None:
        """Every send has its attempt row, or its spool line, or was noted by a run whose owner died."""
        rows, sent = {row["id"]: row for row in await self._outside.runs()}, self._client.sent
        assert set(sent) <= set(rows), "I6: a row before each send"
        for run_id, row in rows.items():
            written = len(await self._outside.attempts(run_id))
            if row["status"] not in {"STARTED", "ABANDONED"}:
                assert sent[run_id] == written
            elif run_id not in spooled:
                assert sent[run_id] <= (row["sends_noted"] if run_id in self._dead else 0)
        slots = Counter((row["workspace_id"], row["idem_slot"]) for row in rows.values() if row["idem_slot"])
        assert [slot for slot, count in slots.items() if count > 1] == []

    async def _check_the_dead(self) -> None:
        """Takeovers happened, of dead owners only; what these had sent is noted."""
        abandoned = await self._outside.runs(status="ABANDONED")
        assert 0 < len(abandoned) <= len(self._dead)
        assert {row["id"] for row in abandoned} <= self._dead
        noted = [row for row in abandoned if 0 < self._client.sent[row["id"]] <= row["sends_noted"]]
        assert noted == abandoned
        heirs = {row["supersedes"]: row for row in await self._outside.runs() if row["supersedes"]}
        assert set(heirs) == {row["id"] for row in abandoned}  # how these ended is up to the weather

    async def _check_answers(self) -> None:
        """Whoever had an answer gets it again, from anybody."""
        assert {key: texts for key, texts in self._answers.items() if len(texts) > 1} == {}
        await self._outside.end_leases()
        calm = Moody(self._chance, faults=0.0)
        async with rig(self._url, calm, spool_dir=self._folder / "c") as last:
            for key in sorted(self._answers):
                answer = await last.llm.chat(request(idempotency_key=key))
                assert {answer.text} == self._answers[key]
        assert calm.sent.total() == 0


class Lent:
    """A client that whoever borrows it does not close."""

    def __init__(self, client: Moody | Observed) -> None:
        self.send, self.warm_up = client.send, client.warm_up

    async def close(self) -> None:
        """Its owner does that."""


def _make_unreliable(ledger: Any, chance: random.Random) -> None:
    def fault(_: str) -> None:
        if chance.random() < 0.05:
            raise LLMLedgerUnavailable("a random fault of the database")

    ledger.before = ledger.between = ledger.after = fault
