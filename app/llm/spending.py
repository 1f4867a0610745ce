"""Whether a call may be sent under the budgets of its workspace: too dear candidates are left out, a call may be refused.

Looked at before the claim, and made sure by it: the claim takes the reservation only if it still fits, so calls that
look at the same moment cannot all go on what one of them may take.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from typing import TypeVar

from app.llm.budgets import (
    MEASURES,
    BudgetBook,
    Budgets,
    BudgetState,
    Estimate,
    Measure,
    Reservation,
    estimate,
    lacking,
    period_of,
    refused,
    said,
    unfit,
)
from app.llm.candidates import Route, RouteDecision, RouteEntry, RouteReason
from app.llm.errors import LLMBudgetExceeded
from app.llm.fields.budgets import Budget, UnknownPrice
from app.llm.pricing import FREE
from app.llm.settings import LLMSettings
from app.llm.telemetry import Telemetry

T = TypeVar("T")
ROUNDS = 3
"""Times that a call looks again because others took what it saw."""


class Spending:
    """The budgets of the settings over the counters of a ledger."""

    def __init__(self, settings: LLMSettings, book: BudgetBook, telemetry: Telemetry) -> None:
        self._budgets = Budgets.from_settings(settings)
        self._refuses_unknown = settings.budget_unknown_price is UnknownPrice.REFUSE
        self._book = book
        self._telemetry = telemetry

    def limits_of(self, workspace_id: str) -> tuple[Budget, ...]:
        """Return the budgets over a workspace; none for most."""
        return self._budgets.limits_of(workspace_id)

    async def claimed(
        self,
        workspace_id: str,
        route: RouteDecision,
        limits: tuple[Budget, ...],
        claim: Callable[[RouteDecision, Reservation], Awaitable[T]],
        record: Callable[[RouteDecision, LLMBudgetExceeded], Awaitable[None]],
        is_asked: Callable[[], Awaitable[bool]],
    ) -> T:
        """Return what `claim` gives for those candidates of the route that the budgets allow.

        Args:
            workspace_id: Whose call it is.
            route: Whom it would be sent to; one candidate at least.
            limits: The budgets over the workspace; one at least.
            claim: Claims the run with a reservation.
            record: Writes the row of a call that is refused, with the route as the budgets left it.
            is_asked: Says whether another call asks the same under the same key: its answer takes nothing.

        Raises:
            LLMBudgetExceeded: No candidate fits; nothing was sent.
        """
        tries = 0
        while True:
            tries += 1
            state = await self._book.budget_state(workspace_id, [each.per for each in limits])
            decided, refusal = self._decided(workspace_id, route, limits, state)
            try:
                if refusal is None:
                    return await self._claimed(workspace_id, decided, limits, state, claim)
                if not await is_asked():
                    raise refusal
                return await claim(route, unfit(workspace_id, limits))
            except LLMBudgetExceeded as error:
                if error is not refusal and tries < ROUNDS:  # others were faster, or had no answer
                    continue
                told = refusal or error
                self._telemetry.budget_exceeded(told)
                await record(decided, told)
                raise told from None

    async def _claimed(
        self,
        workspace_id: str,
        affordable: RouteDecision,
        limits: tuple[Budget, ...],
        state: BudgetState,
        claim: Callable[[RouteDecision, Reservation], Awaitable[T]],
    ) -> T:
        first = estimate(affordable, affordable.kept[0])
        await self._warn(workspace_id, limits, state, first)
        usd = FREE if first.usd is None else first.usd
        return await claim(
            affordable,
            Reservation(workspace_id=workspace_id, limits=limits, tokens=first.tokens, usd=usd),
        )

    def _decided(
        self, workspace_id: str, route: RouteDecision, limits: tuple[Budget, ...], state: BudgetState
    ) -> tuple[RouteDecision, LLMBudgetExceeded | None]:
        """Return the route with those that do not fit among the excluded ones, and the refusal if nobody is left."""
        kept, dear, faults = [], [], []
        for entry in route.entries:
            needed = estimate(route, entry.candidate) if entry.kept else None
            fault = None if needed is None else self._fault(limits, state, needed)
            if needed is None or fault is None:
                kept.append(entry)
                continue
            faults.append((fault, needed))
            dear.append(_excluded(entry, fault, needed, state))
        if not dear:
            return route, None
        there = [entry for entry in kept if entry.kept]
        entries = (*there, *dear, *(entry for entry in kept if not entry.kept))
        decided = replace(route, route=Route(entries))
        if there:
            return decided, None
        (budget, measure), needed = faults[0]
        refusal = refused(
            workspace_id,
            budget,
            measure,
            spent=state.spent[budget.per],
            now=state.now,
            needed=_amount(needed, measure),
        )
        return decided, refusal.with_facts(route=decided.summary())

    def _fault(
        self, limits: tuple[Budget, ...], state: BudgetState, needed: Estimate
    ) -> tuple[Budget, Measure] | None:
        in_dollars = next((each for each in limits if each.usd is not None), None)
        if self._refuses_unknown and needed.usd is None and in_dollars is not None:
            return in_dollars, "usd"
        return lacking(limits, state, needed)

    async def _warn(
        self, workspace_id: str, limits: tuple[Budget, ...], state: BudgetState, needed: Estimate
    ) -> None:
        """Tell of each soft limit that this call crosses, if nobody has in this period."""
        for budget in limits:
            spent = state.spent[budget.per]
            for measure in MEASURES:
                limit = budget.tokens if measure == "tokens" else budget.usd
                if not limit or spent.warned.get(measure):
                    continue
                taken = spent.taken(measure) + (_amount(needed, measure) or FREE)
                if float(taken) < budget.soft * float(limit):
                    continue
                if await self._book.warn_budget(workspace_id, spent.period, measure):
                    self._telemetry.budget_soft(
                        workspace_id=workspace_id,
                        per=budget.per,
                        period=period_of(budget.per, state.now),
                        measure=measure,
                        limit=str(limit),
                        taken=str(taken),
                    )


def _amount(needed: Estimate, measure: Measure) -> Decimal | None:
    return Decimal(needed.tokens) if measure == "tokens" else needed.usd


def _excluded(
    entry: RouteEntry, fault: tuple[Budget, Measure], needed: Estimate, state: BudgetState
) -> RouteEntry:
    budget, measure = fault
    amount = _amount(needed, measure)
    limit = Decimal((budget.tokens if measure == "tokens" else budget.usd) or 0)
    left = max(FREE, limit - state.spent[budget.per].taken(measure))
    detail = {
        "needed": "an unknown price" if amount is None else said(measure, amount),
        "left": said(measure, left),
        "per": budget.per,
    }
    return entry.model_copy(update={"kept": False, "reason": RouteReason.BUDGET, "detail": detail})
