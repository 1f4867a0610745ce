"""What budgets say: the settings, the periods, what a run counts, and the words of a refusal."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from app.llm.budgets import (
    Budgets,
    BudgetState,
    Estimate,
    Holding,
    Spent,
    charge_of,
    estimate,
    lacking,
    period_begin,
    period_end,
    period_of,
    refused,
)
from app.llm.errors import LLMSettingsError
from app.llm.fields.budgets import Budget
from app.llm.settings import isolated_settings, load_settings
from app.llm.types import TokenUsage
from tests.support.budgets import DAY, limits, reservation
from tests.support.ledger import attempt, request, route_of

NOON = datetime(2026, 12, 31, 12, tzinfo=UTC)
YAML = """\
budgets:
  - workspace: "*"
    per: day
    usd: 5
    tokens: 2000000
  - {workspace: acme, per: month, usd: "99.5", soft: 0.5}
"""
TOML = """\
[[budgets]]
workspace = "*"
per = "day"
usd = 5
tokens = 2000000

[[budgets]]
workspace = "acme"
per = "month"
usd = "99.5"
soft = 0.5
"""


def spent(tokens: int = 0, usd: Any = 0, *, reserved_tokens: int = 0, reserved_usd: Any = 0) -> Spent:
    return Spent(
        period="2026-12-31",
        spent={"tokens": Decimal(tokens), "usd": Decimal(usd)},
        reserved={"tokens": Decimal(reserved_tokens), "usd": Decimal(reserved_usd)},
    )


def state(of_day: Spent) -> BudgetState:
    return BudgetState(now=NOON, spent={"day": of_day})


# -- settings


@pytest.mark.parametrize(("name", "text"), [("a.yaml", YAML), ("a.toml", TOML)])
def test_a_routing_file_lists_budgets(name: str, text: str):
    Path(name).write_text(text)
    every, acme = load_settings(config_file=name).budgets
    assert (every.workspace, every.per, every.usd, every.tokens, every.soft) == (
        "*",
        "day",
        5,
        2_000_000,
        0.8,
    )
    assert (acme.workspace, acme.per, acme.usd, acme.tokens, acme.soft) == (
        "acme", "month", Decimal("99.5"), None, 0.5,
    )  # fmt: skip


def test_a_variable_lists_budgets(monkeypatch: pytest.MonkeyPatch):
    said = [{"workspace": "*", "per": "day", "usd": 0.1}]
    monkeypatch.setenv("LLM_BUDGETS", json.dumps(said))
    (budget,) = load_settings().budgets
    assert (budget.usd, str(budget)) == (
        Decimal("0.1"), '{"workspace":"*","per":"day","usd":"0.1","soft":0.8}',
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("5 dollars", r"LLM_BUDGETS='5 dollars': not JSON"),
        ('{"per": "day"}', r"not a list of budgets"),
        (
            '[{"workspace": "w", "per": "week", "usd": 1}]',
            r"LLM_BUDGETS\[0\]\[per\]='week': .*'day' or 'month'",
        ),
        ('[{"workspace": "w", "per": "day"}]', r"a budget limits `tokens`, `usd` or both"),
        ('[{"workspace": "w", "per": "day", "usd": -1}]', r"\[usd\]=-1: .*greater than or equal to 0"),
        ('[{"workspace": "w", "per": "day", "usd": 1, "euro": 1}]', r"\[euro\]"),
        ('[{"workspace": "w", "per": "day", "usd": 1, "soft": 2}]', r"\[soft\]=2: .*less than or equal to 1"),
        (
            '[{"workspace": "w", "per": "day", "usd": 1}, {"workspace": "w", "per": "day", "usd": 2}]',
            r"workspace 'w' has two budgets per day",
        ),
    ],
)
def test_a_wrong_budget_is_refused_with_its_place(monkeypatch: pytest.MonkeyPatch, said: str, fault: str):
    monkeypatch.setenv("LLM_BUDGETS", said)
    with pytest.raises(LLMSettingsError, match=fault):
        load_settings()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "budgets:\n  - {workspace: w, per: day, euro: 1}\n",
            r"a\.yaml:2: budgets\[0\]\.euro is not known here",
        ),
        ("budgets: 5\n", r"a\.yaml:1: budgets holds a list of budgets, not a text"),
        ("budgets:\n  - 5\n", r"a\.yaml:2: budgets\[0\] holds names and values, not a text"),
        ("budgets:\n  - workspace: w\n    per: week\n    usd: 1\n", r"a\.yaml:3: budgets\[0\]\.per='week'"),
    ],
)
def test_a_wrong_budget_of_a_file_is_refused_with_its_line(text: str, fault: str):
    Path("a.yaml").write_text(text)
    with pytest.raises(LLMSettingsError, match=fault):
        load_settings(config_file="a.yaml")


def test_budgets_need_a_ledger():
    with pytest.raises(LLMSettingsError, match="LLM_BUDGETS: needs LLM_PERSIST_RUNS=true"):
        isolated_settings(budgets=[DAY], persist_runs=False)


def test_a_name_takes_the_place_of_every_workspace_in_its_period():
    month = Budget(workspace="*", per="month", tokens=9)
    own = Budget(workspace="acme", per="day", tokens=1)
    over = limits(budgets=[month, own, DAY])
    assert over.limits_of("acme") == (own, month)
    assert over.limits_of("other") == (DAY, month)
    assert limits().limits_of("acme") == ()
    assert Budgets.from_settings(load_settings(budgets=[own])).limits_of("other") == ()


# -- periods


def test_a_period_is_a_day_or_a_month_in_utc():
    assert (period_of("day", NOON), period_of("month", NOON)) == ("2026-12-31", "2026-12")
    assert (period_begin("day", NOON).day, period_begin("month", NOON).day) == (31, 1)
    assert period_end("day", NOON) == period_end("month", NOON) == datetime(2027, 1, 1, tzinfo=UTC)
    assert period_end("month", datetime(2026, 1, 31, tzinfo=UTC)) == datetime(2026, 2, 1, tzinfo=UTC)


# -- what a run takes


def test_sends_count_what_they_say_and_as_estimated_where_they_may_have_been_paid():
    route = route_of(request())
    first, second = route.kept
    guess = estimate(route, first).tokens
    told = {"usage": TokenUsage(input_tokens=3, output_tokens=5)}
    silent: dict[str, Any] = {"usage": TokenUsage(), "cost_usd": None}
    sends = [
        attempt(1, status="FAILED", possibly_paid=False, usage=TokenUsage(), cost_usd=Decimal(0)),
        attempt(2, status="FAILED", possibly_paid=True, **silent),
        attempt(3, candidate=second, cost_usd=Decimal("0.5"), **told),
    ]
    assert charge_of(route, sends) == (guess + 8, Decimal("0.5"), 1)
    assert charge_of(route, sends[:1]) == charge_of(route, []) == (0, 0, 0)
    assert charge_of(route, [attempt(**silent)]).tokens == guess


def test_a_figure_that_nobody_can_believe_is_taken_for_unknown():
    route = route_of(request())
    absurd = attempt(usage=TokenUsage(input_tokens=2**62, output_tokens=1), cost_usd=Decimal(10**9))
    assert charge_of(route, [absurd]) == (estimate(route, route.kept[0]).tokens, 0, 1)


def test_a_further_send_takes_what_those_before_it_have_not_left():
    route = route_of(request())
    first = route.kept[0]
    guess = estimate(route, first).tokens
    holding = Holding(route, reservation(guess, 0))
    unpaid = attempt(status="FAILED", usage=TokenUsage(), cost_usd=Decimal(0))
    paid = attempt(status="FAILED", possibly_paid=True, usage=TokenUsage(), cost_usd=None)
    assert holding.missing(first, []) is holding.missing(first, [unpaid]) is None
    more = holding.missing(first, [paid])
    assert more is not None
    assert (more.tokens, more.usd) == (guess, 0)
    holding.add(more)
    assert holding.missing(first, [paid, unpaid]) is None


# -- what fits


@pytest.mark.parametrize(
    ("taken", "needed", "fault"),
    [
        (spent(90), Estimate(10, Decimal(0)), None),
        (spent(90), Estimate(11, Decimal(0)), "tokens"),
        (spent(50, reserved_tokens=41), Estimate(10, Decimal(0)), "tokens"),
        (spent(usd="0.9"), Estimate(1, Decimal("0.1")), None),
        (spent(usd="0.9", reserved_usd="0.01"), Estimate(1, Decimal("0.1")), "usd"),
        (spent(usd=2), Estimate(1, Decimal(0)), None),
        (spent(usd="0.9"), Estimate(1, None), None),
        (spent(usd=1), Estimate(1, None), "usd"),
    ],
)
def test_a_send_fits_or_lacks_a_measure(taken: Spent, needed: Estimate, fault: str | None):
    found = lacking((DAY,), state(taken), needed)
    assert (found and found[1]) == fault


def test_a_refusal_says_whose_what_is_gone_and_when_it_begins_anew():
    error = refused("acme", DAY, "usd", spent=spent(usd="0.95"), now=NOON, needed=Decimal("0.1"))
    assert error.message == (
        "workspace acme has $1 a day: $0.95 are spent, $0 reserved by calls under way, and this one needs about $0.1. "
        "Nothing was sent: the budget begins anew at 2027-01-01 00:00 UTC"
    )
    assert (error.retry_after_s, error.retryable, error.fallback) == (12 * 3600, False, False)
    assert error.facts["begins_anew_at"] == "2027-01-01T00:00:00+00:00"


def test_a_refusal_for_what_others_hold_says_that_they_may_give_it_back():
    held = spent(usd="0.5", reserved_usd="0.45")
    error = refused("acme", DAY, "usd", spent=held, now=NOON, needed=Decimal("0.1"))
    assert "what calls under way do not use is free again when they end" in error.message
    assert error.retry_after_s == 5


def test_a_refusal_for_more_than_the_whole_budget_promises_no_time():
    error = refused("acme", DAY, "tokens", spent=spent(), now=NOON, needed=Decimal(101))
    assert "that is more than all of it: raise the budget" in error.message
    assert error.retry_after_s is None
