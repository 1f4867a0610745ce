"""Recorded calls with what they were asked, read page by page, for whoever wants to route them once more."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import sqlalchemy as sa

from app.db.base import db_now
from app.llm.persistence.codec import Codec, Unreadable, decode_request
from app.llm.persistence.executor import Executor, Step
from app.llm.persistence.models import SUCCEEDED
from app.llm.persistence.statements import payloads, runs
from app.llm.ports import TOOL
from app.llm.simulation import Recorded
from app.llm.types import LLMRequest

PAGE = 500
"""Runs that are read at once."""

_COLUMNS = (
    *(
        "id",
        "workspace_id",
        "stage",
        "provider",
        "model",
        "route",
        "input_tokens",
        "output_tokens",
        "cost_usd",
    ),
    *("latency_ms", "request_payload"),
)


async def recorded_calls(
    reader: Executor, codec: Codec, *, newer_than_s: float, workspace_id: str | None = None
) -> AsyncIterator[Recorded]:
    """Yield the calls that a provider answered, oldest first; hits, effects and failures are none of them.

    Args:
        reader: The ledger's connections.
        codec: How requests are kept; one that it cannot read is None.
        newer_than_s: Age at most, in seconds by the database's clock.
        workspace_id: Of this tenant only.
    """
    last = ""
    while True:
        rows = (await reader.read(Step(_page(last, newer_than_s, workspace_id), {}))).rows
        for row in rows:
            yield Recorded(
                run_id=row["id"],
                stage=row["stage"],
                served_by=f"{row['provider']}:{row['model']}",
                kept=tuple(
                    f"{entry['provider']}:{entry['model']}"
                    for entry in json.loads(row["route"])
                    if entry["kept"]
                ),
                request=_request(row, codec),
                input_tokens=row["input_tokens"],
                output_tokens=row["output_tokens"],
                cost_usd=None if row["cost_usd"] is None else float(row["cost_usd"]),
                latency_ms=row["latency_ms"],
            )
        if len(rows) < PAGE:
            return
        last = rows[-1]["id"]


def _page(last: str, newer_than_s: float, workspace_id: str | None) -> sa.Select[Any]:
    text = sa.and_(
        payloads.c.workspace_id == runs.c.workspace_id, payloads.c.sha256 == runs.c.request_payload
    )
    wanted = [
        runs.c.status == SUCCEEDED,
        runs.c.source_run_id.is_(None),
        runs.c.profile != TOOL,
        runs.c.created_at > db_now(sa.literal(-newer_than_s, sa.Float)),
        runs.c.id > last,
    ]
    if workspace_id is not None:
        wanted.append(runs.c.workspace_id == workspace_id)
    return (
        sa.select(*(runs.c[name] for name in _COLUMNS), payloads.c.codec, payloads.c.bytes)
        .select_from(runs.outerjoin(payloads, text))
        .where(*wanted)
        .order_by(runs.c.id)
        .limit(PAGE)
    )


def _request(row: Mapping[str, Any], codec: Codec) -> LLMRequest | None:
    if row["bytes"] is None:
        return None
    where = {"workspace_id": row["workspace_id"], "address": row["request_payload"]}
    try:
        request = decode_request(codec.decode(row["codec"], row["bytes"], **where))
    except Unreadable:
        return None
    return request if isinstance(request, LLMRequest) else None
