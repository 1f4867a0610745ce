"""`signalbox budgets`: what workspaces may spend, what they have spent, what is left."""

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson
from app.cli.output import emit_json, emit_table, note

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from app.llm.persistence.standing import Standing

_COLUMNS = ("workspace", "per", "period", "limit", "spent", "reserved", "left", "used", "begins anew (UTC)")


def budgets(
    *,
    workspace: Annotated[str | None, typer.Option(metavar="NAME", help="Of this tenant only.")] = None,
    recount: Annotated[
        bool, typer.Option("--recount", help="Count anew from the recorded runs, then show.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how the budgets of LLM_BUDGETS stand in the present day and month, UTC.

    Reserved is what calls hold that are under way; what they do not use of it is free again when they end. A cost that
    is unknown counts as it was estimated, or not at all where there is no price: how many there are is said.

    A counter counts the calls of processes that had the budget. --recount makes it anew of all runs, after budgets were
    off for a while in the midst of a period, for instance.

    Example: signalbox budgets --workspace acme
    """
    found = asyncio.run(_standings(workspace, recount=recount))
    if as_json:
        emit_json([line for each in found for line in _documents(each)])
    elif found:
        emit_table(_COLUMNS, [_cells(line) for each in found for line in _documents(each)])
    else:
        note("no budgets: LLM_BUDGETS sets them, or `budgets` in LLM_CONFIG_FILE")


async def _standings(workspace: str | None, *, recount: bool) -> "Sequence[Standing]":
    from app.cli import ledger  # noqa: PLC0415  # --help is fast
    from app.llm.budgets import Budgets  # noqa: PLC0415
    from app.llm.persistence import standing  # noqa: PLC0415
    from app.llm.settings import load_settings  # noqa: PLC0415

    over = Budgets.from_settings(load_settings())
    async with ledger.current() as executor:
        found = await standing.standings(executor, over, workspace)
        if recount:
            await standing.recount(executor, found)
            found = await standing.standings(executor, over, workspace)
    return found


def _documents(each: "Standing") -> "Iterator[dict[str, Any]]":
    """Yield a line for each measure that is limited."""
    from app.llm.budgets import MEASURES, period_end  # noqa: PLC0415  # --help is fast

    budget, spent = each.budget, each.spent
    for measure in MEASURES:
        limit = budget.tokens if measure == "tokens" else budget.usd
        if limit is None:
            continue
        left = Decimal(limit) - spent.taken(measure)
        yield {
            "workspace": each.workspace_id,
            "per": budget.per,
            "period": spent.period,
            "measure": measure,
            "limit": _number(limit, measure),
            "soft": budget.soft,
            "spent": _number(spent.spent[measure], measure),
            "reserved": _number(spent.reserved[measure], measure),
            "left": _number(max(left, Decimal(0)), measure),
            "unknown_costs": spent.unknown_costs if measure == "usd" else 0,
            "begins_anew_at": period_end(budget.per, each.now),
        }


def _number(amount: Decimal | int, measure: str) -> Decimal | int:
    return int(amount) if measure == "tokens" else Decimal(amount)


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    def said(name: str) -> str:
        amount = line[name]
        return f"{amount:,} tokens" if line["measure"] == "tokens" else f"${amount:,.4f}"

    taken, limit = line["spent"] + line["reserved"], line["limit"]
    unknown = f" + {line['unknown_costs']:,} unknown" if line["unknown_costs"] else ""
    return (
        *(line["workspace"], line["per"], line["period"], said("limit")),
        *(f"{said('spent')}{unknown}", said("reserved"), said("left")),
        f"{float(taken) / float(limit):.0%}" if limit else "-",
        f"{line['begins_anew_at']:%Y-%m-%d %H:%M}",
    )
