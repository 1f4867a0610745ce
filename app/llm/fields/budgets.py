"""The settings of budgets: what a workspace may spend a day or a month, in tokens and dollars."""

import json
from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from app.llm.fields import Fields

EVERY = "*"
"""Names every workspace, each by itself."""
Per = Literal["day", "month"]


class UnknownPrice(StrEnum):
    """What a budget in dollars makes of a candidate whose price nobody knows."""

    COUNT = "count"
    REFUSE = "refuse"


class Budget(BaseModel):
    """What one workspace, or each of them, may spend in a day or a month, UTC."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    workspace: str = Field(min_length=1, max_length=255)
    """A name, or `*`."""
    per: Per
    tokens: int | None = Field(default=None, ge=0, le=10**15)
    """Input and output, wherever they were used, on local models too."""
    usd: Decimal | None = Field(default=None, ge=0, le=10**8, decimal_places=9)
    soft: float = Field(default=0.8, gt=0, le=1)
    """Share of a limit from which on it is warned of, once."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.tokens is None and self.usd is None:
            raise ValueError("a budget limits `tokens`, `usd` or both")
        return self

    def __str__(self) -> str:
        """Return it as it is written in LLM_BUDGETS."""
        return self.model_dump_json(exclude_none=True)


class BudgetFields(Fields):
    """What workspaces may spend."""

    # -- budgets
    budgets: Annotated[tuple[Budget, ...], NoDecode] = ()
    """What workspaces may spend, as JSON: `[{"workspace": "*", "per": "day", "usd": 5, "tokens": 2000000, "soft": 0.8}]`. `per` is `day` or `month`, UTC; `*` is each workspace by itself, and a name takes its place; `soft` is the share from which on it is warned of. Every process of a ledger needs the same."""
    budget_unknown_price: UnknownPrice = UnknownPrice.COUNT
    """A candidate without a known price, under a budget in dollars: `count` (asked until the budget is used up, and counted as unknown) or `refuse` (never asked)."""

    @field_validator("budgets", mode="before")
    @classmethod
    def _budgets_are_json(cls, value: object) -> object:
        if isinstance(value, Mapping):  # of a routing file: by their places in its list
            return tuple(value.values())
        if not isinstance(value, str):
            return value
        try:
            said = json.loads(value)
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from None
        if not isinstance(said, list):
            raise ValueError("not a list of budgets: [{...}, {...}]")  # noqa: TRY004  # pydantic's way
        return said

    @field_validator("budgets")
    @classmethod
    def _one_for_each_period(cls, value: tuple[Budget, ...]) -> tuple[Budget, ...]:
        seen = set[tuple[str, str]]()
        for budget in value:
            if (budget.workspace, budget.per) in seen:
                raise ValueError(f"workspace {budget.workspace!r} has two budgets per {budget.per}")
            seen.add((budget.workspace, budget.per))
        return value

    @model_validator(mode="after")
    def _budgets_have_a_ledger(self) -> Self:
        others: Any = self  # the ledger's room is another one
        if self.budgets and not getattr(others, "persist_runs", True):
            raise ValueError("LLM_BUDGETS: needs LLM_PERSIST_RUNS=true, for the ledger counts what was spent")
        return self
