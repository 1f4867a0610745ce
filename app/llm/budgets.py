"""What a workspace may spend, what a call may take of that before it is sent, and what it took in the end. Pure.

A run holds what it may cost while it is under way, and counts what it cost once it has ended: both stand on its row
(`reserved_tokens`, `reserved_cost_usd`), and the counters of its day and its month are the sums of such rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Literal, NamedTuple, Protocol, Self

from app.llm.candidates import Candidate, RouteDecision
from app.llm.errors import LLMBudgetExceeded
from app.llm.fields.budgets import EVERY, Budget, Per
from app.llm.pricing import FREE, price_for
from app.llm.settings import LLMSettings
from app.llm.types import Attempt, TokenUsage

Measure = Literal["tokens", "usd"]
MEASURES: tuple[Measure, ...] = ("tokens", "usd")
PERIOD_CHARS: Mapping[Per, int] = {"day": len("2026-01-31"), "month": len("2026-01")}
"""A period is the start of a day's name: of all of it, or of its year and month."""
MOST_TOKENS = 2**31
"""Of one send; what says more is not believed, and sums of such counts fit."""
MOST_USD = Decimal(10**6)
"""As above."""
AGAIN_S = 5.0
"""Seconds after which a call that only lacks what others hold may be worth another try: a guess."""


class Estimate(NamedTuple):
    """What one send to a candidate takes, guessed high rather than low."""

    tokens: int
    usd: Decimal | None
    """None while nobody knows its price."""


class Charge(NamedTuple):
    """What an ended run counts."""

    tokens: int
    usd: Decimal
    unknown: int
    """1 where the cost is not known, so that what is counted is a guess, or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What a run takes of the budgets that are over it."""

    workspace_id: str
    limits: tuple[Budget, ...]
    """The day's before the month's: everybody locks in this order."""
    tokens: int
    usd: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What the calls of a workspace took in one period."""

    period: str
    """`2026-01-31`, or `2026-01`."""
    spent: Mapping[Measure, Decimal]
    reserved: Mapping[Measure, Decimal]
    """What calls that are under way hold."""
    unknown_costs: int = 0
    """Runs whose cost is not known."""
    warned: Mapping[Measure, bool] = field(default_factory=dict)

    def taken(self, measure: Measure) -> Decimal:
        """Return what is spent or held."""
        return self.spent[measure] + self.reserved[measure]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """The counters of a workspace's present day and month."""

    now: datetime
    """By the database's clock."""
    spent: Mapping[Per, Spent]


class BudgetBook(Protocol):
    """Where it is counted."""

    async def budget_state(self, workspace_id: str, pers: Sequence[Per]) -> BudgetState:
        """Return the counters of these periods, each of them.

        Raises:
            LLMLedgerError: The database is away.
        """
        ...

    async def warn_budget(self, workspace_id: str, period: str, measure: Measure) -> bool:
        """Note that a soft limit was told of; False where somebody else has done so."""
        ...


@dataclass(frozen=True, slots=True)
class Budgets:
    """The budgets of all workspaces."""

    by_name: Mapping[str, tuple[Budget, ...]]
    of_others: tuple[Budget, ...] = ()

    @classmethod
    def from_settings(cls, settings: LLMSettings) -> Self:
        """Return the budgets that the settings describe."""
        every = {each.per: each for each in settings.budgets if each.workspace == EVERY}
        named = {each.workspace: dict(every) for each in settings.budgets if each.workspace != EVERY}
        for each in settings.budgets:
            if each.workspace != EVERY:
                named[each.workspace][each.per] = each
        return cls({name: _ordered(own) for name, own in named.items()}, _ordered(every))

    def limits_of(self, workspace_id: str) -> tuple[Budget, ...]:
        """Return the budgets over a workspace, one a period at most: its own, else that of every workspace."""
        return self.by_name.get(workspace_id, self.of_others)


@dataclass(slots=True)
class Holding:
    """What a run holds while its sends go on."""

    route: RouteDecision
    held: Reservation

    def missing(self, candidate: Candidate, attempts: Sequence[Attempt]) -> Reservation | None:
        """Return what a send to a candidate takes beyond what is held and not used by the sends before it."""
        used, next_one = charge_of(self.route, attempts), estimate(self.route, candidate)
        tokens = max(0, used.tokens + next_one.tokens - self.held.tokens)
        usd = max(FREE, used.usd + (next_one.usd or FREE) - self.held.usd)
        return self._of(tokens, usd) if tokens or usd else None

    def add(self, more: Reservation) -> None:
        """Hold that as well."""
        self.held = self._of(self.held.tokens + more.tokens, self.held.usd + more.usd)

    def _of(self, tokens: int, usd: Decimal) -> Reservation:
        held = self.held
        return Reservation(workspace_id=held.workspace_id, limits=held.limits, tokens=tokens, usd=usd)


def unfit(workspace_id: str, limits: Sequence[Budget]) -> Reservation:
    """Return what never fits: who claims with it can but wait for somebody else's answer."""
    none = tuple(budget.model_copy(update={"tokens": 0}) for budget in limits)
    return Reservation(workspace_id=workspace_id, limits=none, tokens=1, usd=FREE)


def estimate(route: RouteDecision, candidate: Candidate) -> Estimate:
    """Return what one send to a candidate of the route takes: the prompt, and the longest answer that is asked for."""
    needs = route.needs_of[candidate.provider]
    usage = TokenUsage(input_tokens=needs.input_tokens_estimate, output_tokens=needs.output_tokens_reserved)
    usd = price_for(candidate).cost_usd(usage, with_sound=needs.audio)
    return Estimate(min(needs.tokens, MOST_TOKENS), None if usd is None else min(usd, MOST_USD))


def charge_of(route: RouteDecision, attempts: Sequence[Attempt]) -> Charge:
    """Return what the sends of a run count; one that may have been paid, and does not say what it took, as estimated."""
    estimates = {candidate.identity: estimate(route, candidate) for candidate in route.kept}
    tokens, usd, unknown = 0, FREE, 0
    for attempt in attempts:
        guess = estimates.get(attempt.candidate_sha256, Estimate(0, None))
        took, cost_usd = attempt.usage.total_tokens, attempt.cost_usd
        paid = attempt.possibly_paid or attempt.status == "SUCCEEDED"
        if took is None or not 0 <= took <= MOST_TOKENS:
            took = guess.tokens if paid else 0
        if cost_usd is None or cost_usd >= MOST_USD:
            cost_usd, unknown = guess.usd or FREE, 1
        tokens, usd = tokens + took, usd + cost_usd
    return Charge(tokens, usd, unknown)


def lacking(limits: Sequence[Budget], state: BudgetState, needed: Estimate) -> tuple[Budget, Measure] | None:
    """Return the first limit that a send does not fit under; what costs nothing fits under any."""
    for budget in limits:
        spent = state.spent[budget.per]
        if budget.tokens is not None and spent.taken("tokens") + needed.tokens > budget.tokens:
            return budget, "tokens"
        if budget.usd is None or needed.usd == FREE:
            continue
        # a price that is not known adds nothing to the sum, but nothing goes on once the budget is used up
        least = _NANO if needed.usd is None else needed.usd
        if spent.taken("usd") + least > budget.usd:
            return budget, "usd"
    return None


_NANO = Decimal("1e-9")


def refused(
    workspace_id: str,
    budget: Budget,
    measure: Measure,
    *,
    spent: Spent,
    now: datetime,
    needed: Decimal | None,
) -> LLMBudgetExceeded:
    """Return the error of a call that does not fit: whose budget, what is spent and held, when it begins anew."""
    limit = Decimal((budget.tokens if measure == "tokens" else budget.usd) or 0)
    ends = period_end(budget.per, now)
    advice, retry_after_s = _remedy(limit, spent.spent[measure], needed, ends=ends, now=now)
    wants = "a price that is not known" if needed is None else f"about {said(measure, needed)}"
    return LLMBudgetExceeded(
        f"workspace {workspace_id} has {said(measure, limit)} a {budget.per}: {said(measure, spent.spent[measure])} are "
        f"spent, {said(measure, spent.reserved[measure])} reserved by calls under way, and this one needs {wants}. "
        f"Nothing was sent: {advice}",
        workspace_id=workspace_id,
        per=budget.per,
        period=spent.period,
        measure=measure,
        limit=limit,
        spent=spent.spent[measure],
        reserved=spent.reserved[measure],
        needed=needed,
        begins_anew_at=ends.isoformat(),
        retry_after_s=retry_after_s,
    )


def _remedy(
    limit: Decimal, spent: Decimal, needed: Decimal | None, *, ends: datetime, now: datetime
) -> tuple[str, float | None]:
    """Return what to do about a refusal, and the seconds after which a new try makes sense; None: never."""
    if needed is not None and needed > limit:
        return (
            "that is more than all of it: raise the budget, shorten the prompt, or lower max_output_tokens",
            None,
        )
    anew = f"the budget begins anew at {ends:%Y-%m-%d %H:%M} UTC"
    if spent + (needed or FREE) <= limit:
        return f"what calls under way do not use is free again when they end; {anew}", AGAIN_S
    return anew, round((ends - now).total_seconds(), 3)


def said(measure: Measure, amount: Decimal) -> str:
    """Return an amount with its unit."""
    return f"{amount:,.0f} tokens" if measure == "tokens" else f"${amount.normalize():,f}"


def period_of(per: Per, at: datetime) -> str:
    """Return the period of a time, as counters are named."""
    return at.astimezone(UTC).date().isoformat()[: PERIOD_CHARS[per]]


def period_begin(per: Per, at: datetime) -> datetime:
    """Return when the period of a time began."""
    day = at.astimezone(UTC).date()
    return datetime.combine(day if per == "day" else day.replace(day=1), time(), UTC)


def period_end(per: Per, at: datetime) -> datetime:
    """Return when the next period begins."""
    begin = period_begin(per, at)
    return begin + timedelta(days=1) if per == "day" else (begin + timedelta(days=32)).replace(day=1)


def _ordered(budgets: Mapping[Per, Budget]) -> tuple[Budget, ...]:
    return tuple(budgets[per] for per in PERIOD_CHARS if per in budgets)
