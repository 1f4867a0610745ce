"""`signalbox budgets`: what is set, spent, held and left, and a count from the rows."""

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from app.llm.persistence.models import LLMBudget
from tests.support.ledger import Outside
from tests.support.usage import TODAY, put, run_row
from tests.unit.cli.conftest import Run

SET = [
    {"workspace": "*", "per": "day", "usd": 2, "tokens": 100},
    {"workspace": "w1", "per": "month", "usd": 10},
]


@pytest.fixture
def spent(on_each_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Workspaces that have called today: w1, which has a budget of its own, and w2."""
    monkeypatch.setenv("LLM_BUDGETS", json.dumps(SET))

    async def fill() -> None:
        seen = Outside(on_each_database)
        await put(seen, run_row(TODAY), run_row(TODAY, cost_usd=None), run_row(TODAY, workspace_id="w2"))
        values = {"workspace_id": "w2", "period": TODAY.date().isoformat(), "unknown_costs": 0}
        taken = {
            "spent_tokens": 40,
            "spent_usd": Decimal("1.5"),
            "reserved_tokens": 50,
            "reserved_usd": Decimal("0.25"),
        }
        async with seen.engine.begin() as connection:
            table = sa.insert(LLMBudget.__table__)
            await connection.execute(table.values(**values, **taken, warned_tokens=False, warned_usd=False))
        await seen.close()

    asyncio.run(fill())
    return on_each_database


def document(signalbox: Run, *args: str) -> Any:
    done = signalbox("budgets", "--json", *args)
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


def figures(line: Any) -> tuple[Any, ...]:
    names = ("workspace", "per", "measure", "limit", "spent", "reserved", "left", "unknown_costs")
    return tuple(line[name] for name in names)


@pytest.mark.usefixtures("spent")
def test_each_budget_says_what_is_spent_held_and_left(signalbox: Run):
    """A counter that nobody has made yet says what it will."""
    assert [figures(line) for line in document(signalbox)] == [
        ("w1", "day", "tokens", 100, 30, 0, 70, 0),
        ("w1", "day", "usd", 2, 0.5, 0, 1.5, 1),
        ("w1", "month", "usd", 10, 0.5, 0, 9.5, 1),
        ("w2", "day", "tokens", 100, 40, 50, 10, 0),
        ("w2", "day", "usd", 2, 1.5, 0.25, 0.25, 0),
    ]
    assert [line["per"] for line in document(signalbox, "--workspace", "nobody")] == ["day", "day"]


@pytest.mark.usefixtures("spent")
def test_a_recount_says_what_the_rows_say(signalbox: Run):
    lines = document(signalbox, "--recount", "--workspace", "w2")
    assert [figures(line)[3:] for line in lines] == [(100, 15, 0, 85, 0), (2, 0.5, 0, 1.5, 0)]


@pytest.mark.usefixtures("spent")
def test_a_person_sees_a_table(signalbox: Run):
    done = signalbox("budgets")
    assert (done.code, done.err) == (0, "")
    line = next(line for line in done.out.splitlines() if "w2" in line and "$" in line)
    assert line.split()[:8] == [
        "w2",
        "day",
        TODAY.date().isoformat(),
        "$2.0000",
        "$1.5000",
        "$0.2500",
        "$0.2500",
        "88%",
    ]
    assert "$0.5000 + 1 unknown" in done.out


@pytest.mark.usefixtures("on_each_database")
def test_without_budgets_it_says_so(signalbox: Run):
    done = signalbox("budgets")
    assert (done.code, done.out) == (0, "")
    assert "LLM_BUDGETS" in done.err
    assert document(signalbox) == []
