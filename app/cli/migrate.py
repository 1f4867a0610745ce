"""`signalbox migrate`: the ledger's tables, brought to this version or only looked at."""

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from app.cli.options import AsJson
from app.cli.output import emit, emit_json


def migrate(
    *,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 unless current.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create or upgrade the ledger's tables.

    They live in the database of LLM_DATABASE_URL.

    Example: signalbox migrate --check
    """
    from app.cli import ledger  # noqa: PLC0415  # --help is fast

    done = asyncio.run(ledger.migrate(check=check))
    if as_json:
        emit_json(asdict(done))
    elif done.before == done.after:
        emit(f"{done.database}: at {done.after}, which is current")
    else:
        emit(f"{done.database}: migrated from {done.before or 'no tables'} to {done.after}")
