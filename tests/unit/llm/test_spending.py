"""Calls under a budget, end to end over a scripted client: who is asked, who is refused, who is told."""

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from app.bootstrap import build_llm_service
from app.db.unit_of_work import unit_of_work
from app.llm.budgets import estimate
from app.llm.errors import LLMBudgetExceeded, LLMTimeout
from app.llm.metric_names import BUDGET_REFUSALS, BUDGET_WARNINGS
from app.llm.persistence.models import LLMBudget
from app.llm.service import LLMService
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import ServedFrom
from tests.support.budgets import PRICED, counted, counters
from tests.support.ledger import FIRST, SECOND, Outside, request, settings_for
from tests.support.service import refused, rig, service, timed_out

ASKED = request(model=PRICED)
TOKENS = 8
"""Of an answer of the scripted client."""


def budget(**values: Any) -> dict[str, Any]:
    return {"budgets": [{"workspace": "*", "per": "day", **values}]}


def price(llm: LLMService) -> Decimal:
    """Return what a call to the priced model is held to cost."""
    route = llm.explain(ASKED)
    usd = estimate(route, route.kept[0]).usd
    assert usd is not None
    return usd


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


async def _spend(outside: Outside, **values: Any) -> None:
    """Let the workspace have spent so much."""
    async with outside.engine.begin() as connection:
        await connection.execute(sa.update(LLMBudget.__table__).values(**values))


async def test_without_a_budget_nothing_is_asked_or_written(db_url: str, outside: Outside):
    async with rig(db_url) as rigged:
        await rigged.llm.chat(ASKED)
    assert rigged.ledger.seen == ["claim", "finish"]
    assert await counters(outside) == {}
    (row,) = await outside.runs()
    assert (row["reserved_tokens"], row["reserved_cost_usd"]) == (None, None)


async def test_another_workspace_has_no_part_in_it(db_url: str, outside: Outside):
    over = [{"workspace": "acme", "per": "day", "tokens": 0}]
    async with rig(db_url, budgets=over) as rigged:
        await rigged.llm.chat(ASKED)
    assert rigged.ledger.seen == ["claim", "finish"]


async def test_a_call_holds_its_estimate_and_counts_its_cost(db_url: str, outside: Outside):
    held: list[Any] = []

    class Client(ScriptedClient):
        async def send(self, *args: Any, **values: Any) -> Any:
            held.append(await counted(outside))
            return await super().send(*args, **values)

    async with service(db_url, Client(), **budget(usd=5)) as llm:
        answer = await llm.chat(ASKED)
        usd = price(llm)
    ((tokens, *rest),) = held
    assert tokens == 0
    assert rest[0] == 0
    assert rest[2] == float(usd)
    assert answer.cost_usd is not None
    assert await counted(outside) == (TOKENS, float(answer.cost_usd), 0, 0, 0)


async def test_a_call_that_does_not_fit_is_refused_and_nothing_is_sent(db_url: str, outside: Outside):
    client = ScriptedClient()
    async with service(db_url, client, **budget(usd="0.000001")) as llm:
        with pytest.raises(LLMBudgetExceeded, match=r"workspace w1 has \$0\.000001 a day") as caught:
            await llm.chat(ASKED)
    (row,) = await outside.runs()
    assert (client.sends, row["id"]) == (0, caught.value.facts["run_id"])
    assert (row["status"], row["error_code"]) == ("FAILED", "budget_exceeded")
    assert (row["provider"], row["cost_usd"], row["reserved_tokens"]) == (None, 0, None)
    assert caught.value.facts["route"][0]["reason"] == "budget"
    assert json.loads(row["route"]) == list(caught.value.facts["route"])
    assert "more than all of it" in caught.value.message


async def test_used_up_dollars_leave_the_candidates_that_cost_nothing(db_url: str, outside: Outside):
    client = ScriptedClient()
    async with service(
        db_url, client, profile_balanced=f"{PRICED},{FIRST}", fallback_to_cloud=True, **budget(usd=1)
    ) as llm:
        assert (await llm.chat(request())).model == "gemini-2.5-flash"
        await _spend(outside, spent_usd=Decimal("1.5"))
        answer = await llm.chat(request())
    assert (answer.model, answer.cost_usd) == ("first", 0)
    dear = next(entry for entry in answer.route if entry["model"] == "gemini-2.5-flash")
    assert (dear["kept"], dear["reason"]) == (False, "budget")
    assert dear["detail"]["left"] == "$0"  # type: ignore[index, call-overload]


async def test_used_up_tokens_leave_nobody(db_url: str, outside: Outside):
    client = ScriptedClient()
    async with service(db_url, client, **budget(tokens=10)) as llm:
        with pytest.raises(LLMBudgetExceeded, match="has 10 tokens a day"):
            await llm.chat(request())
    assert client.sends == 0


async def test_replays_and_hits_are_served_when_the_budget_is_used_up(db_url: str, outside: Outside):
    asked = request(model=PRICED, idempotency_key="k1")
    async with service(db_url, cache_enabled=True, **budget(usd=1)) as llm:
        await llm.chat(asked)
        await _spend(outside, spent_usd=Decimal(2))
        assert (await llm.chat(asked)).served_from is ServedFrom.REPLAY
        assert (await llm.chat(ASKED)).served_from is ServedFrom.CACHE
        other_key = request(model=PRICED, idempotency_key="k2")
        assert (await llm.chat(other_key)).served_from is ServedFrom.CACHE
        with pytest.raises(LLMBudgetExceeded):
            await llm.chat(request("Another question", model=PRICED))


async def test_an_effect_costs_nothing(db_url: str, outside: Outside):
    async def work() -> str:
        return "done"

    async with service(db_url, **budget(tokens=0, usd=0)) as llm:
        assert await llm.once("k1", "pay", {}, work) == "done"
    assert await counters(outside) == {}


# -- further sends


async def test_a_fallback_that_costs_more_than_is_held_takes_more(db_url: str, outside: Outside):
    client = ScriptedClient([timed_out()])
    async with service(db_url, client, profile_balanced=f"{FIRST},{PRICED}", **budget(usd=1)) as llm:
        answer = await llm.chat(request())
    assert answer.model == "gemini-2.5-flash"
    assert answer.cost_usd is None or answer.cost_usd > 0
    spent_tokens, spent_usd, *rest = await counted(outside)
    assert (rest, spent_tokens > TOKENS, spent_usd > 0) == ([0, 0, 0], True, True)


async def test_a_fallback_that_does_not_fit_is_left_out_and_the_next_one_asked(db_url: str, outside: Outside):
    """The first one's error is the call's where nobody else is left."""
    other = "ollama:other"
    for listed, model in ((f"{FIRST},{PRICED},{other}", "other"), (f"{FIRST},{PRICED}", None)):
        client = _TimesOut([timed_out()])
        client.outside = outside
        async with service(db_url, client, profile_balanced=listed, **budget(usd=1)) as llm:
            if model:
                assert (await llm.chat(request())).model == model
            else:
                with pytest.raises(LLMTimeout) as caught:
                    await llm.chat(request())
                assert [each.model for each in caught.value.attempts] == ["first"]
        assert [candidate.name for candidate, _ in client.sent] == [FIRST, other][: 2 if model else 1]
        await _spend(outside, spent_usd=Decimal(0))


class _TimesOut(ScriptedClient):
    """Its first send times out, while others use the budget up."""

    outside: Outside

    async def send(self, *args: Any, **values: Any) -> Any:
        if not self.sent:
            await _spend(self.outside, spent_usd=Decimal(1))
        return await super().send(*args, **values)


# -- others


async def test_a_call_looks_again_when_others_took_what_it_saw(db_url: str, outside: Outside):
    """Its counter is gone before the claim, as that of a new period is not there yet."""
    async with rig(db_url, **budget(usd=1)) as rigged:
        first = rigged.ledger.inner.transaction

        async def meanwhile(steps: Any) -> Any:
            rigged.ledger.inner.transaction = first
            async with outside.engine.begin() as connection:
                await connection.execute(sa.delete(LLMBudget.__table__))
            return await first(steps)

        await rigged.llm.chat(ASKED)
        rigged.ledger.inner.transaction = meanwhile
        await rigged.llm.chat(ASKED)
    assert [name for name in rigged.ledger.seen if name != "read"] == [
        "open_counters", "claim", "finish", "claim", "open_counters", "claim", "finish",
    ]  # fmt: skip
    assert (await counted(outside))[0] == 2 * TOKENS


async def test_fifty_calls_at_once_send_no_more_than_fit(db_url: str, outside: Outside):
    gate, client = asyncio.Event(), ScriptedClient()
    client.gate = gate
    async with service(db_url, ScriptedClient()) as probe:
        fits = 7 * price(probe) + price(probe) / 2
    async with service(db_url, client, **budget(usd=str(fits))) as llm:
        calls = [asyncio.create_task(llm.chat(ASKED)) for _ in range(50)]
        pending = set(calls)
        async with asyncio.timeout(30):
            while len(pending) > 7:  # the others are refused while these hold
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        gate.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refusals = [each for each in outcomes if isinstance(each, LLMBudgetExceeded)]
    assert (client.sends, len(refusals)) == (7, 43)
    rows = await outside.runs()
    assert sorted(row["status"] for row in rows) == ["FAILED"] * 43 + ["SUCCEEDED"] * 7


async def test_a_soft_limit_is_told_once_by_whichever_service(db_url: str, outside: Outside):
    class Metrics:
        def __init__(self) -> None:
            self.added: list[tuple[str, dict[str, str]]] = []

        def add(self, name: str, value: float, labels: Any) -> None:  # noqa: ARG002
            if name in {BUDGET_WARNINGS, BUDGET_REFUSALS}:
                self.added.append((name, dict(labels)))

        def observe(self, name: str, value: float, labels: Any) -> None:
            """Of no interest here."""

        def watch(self, name: str, read: Any) -> Any:  # noqa: ARG002
            return lambda: None

    metrics = Metrics()
    async with service(db_url) as probe:
        usd = price(probe)
    settings = settings_for(db_url, **budget(usd=str(4 * usd), soft=0.5))
    for _ in range(2):
        async with build_llm_service(settings, client=ScriptedClient(), metrics=metrics) as llm:
            await llm.chat(ASKED)
            await _spend(outside, spent_usd=2 * usd)
            await llm.chat(ASKED)
    assert metrics.added == [(BUDGET_WARNINGS, {"per": "day", "measure": "usd"})]
    await _spend(outside, spent_usd=4 * usd)
    async with build_llm_service(settings, client=ScriptedClient(), metrics=metrics) as llm:
        with pytest.raises(LLMBudgetExceeded):
            await llm.chat(ASKED)
    assert metrics.added[1:] == [(BUDGET_REFUSALS, {"per": "day", "measure": "usd"})]


@pytest.mark.parametrize("policy", ["count", "refuse"])
async def test_a_price_that_nobody_knows_is_counted_or_refused(db_url: str, outside: Outside, policy: str):
    asked, client = request(model=SECOND), ScriptedClient()
    async with service(db_url, client, budget_unknown_price=policy, **budget(usd=1)) as llm:
        if policy == "refuse":
            with pytest.raises(LLMBudgetExceeded, match="a price that is not known"):
                await llm.chat(asked)
            return
        await llm.chat(asked)
        assert await counted(outside) == (TOKENS, 0, 0, 0, 1)
        await _spend(outside, spent_usd=Decimal(1))
        with pytest.raises(LLMBudgetExceeded):
            await llm.chat(asked)
    assert client.sends == 1


async def test_a_joined_call_counts_with_its_caller_s_commit(
    db_url: str, engine: AsyncEngine, outside: Outside
):
    async with service(db_url, ScriptedClient([text_reply("a"), refused()]), **budget(usd=1)) as llm:
        for commits in (False, True):
            async with unit_of_work(engine) as session:
                await llm.joined(session).chat(ASKED)
                if commits:
                    await session.commit()
                else:
                    await session.rollback()
            assert bool(await counters(outside)) is commits
        spent = await counted(outside)
    assert (spent[0], spent[2:]) == (TOKENS, (0, 0, 0))
