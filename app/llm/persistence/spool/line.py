"""A settlement as one line of JSON, and back; a line that the database could not take is refused with the reason.

Reading checks every value against its column: a single line that fails later would fail at every start.
"""

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import sqlalchemy as sa

from app.db.base import UTCDateTime
from app.llm.budgets import Charge
from app.llm.persistence import statements as sql
from app.llm.persistence.codec import to_json
from app.llm.persistence.models import CANCELLED, FAILED, SUCCEEDED
from app.llm.persistence.settlement import MAX_COST_USD, Settlement, Values
from app.llm.persistence.statements_budgets import counters

VERSION = 2

_Columns = Mapping[str, sa.Column[Any]]
_RUN: _Columns = {
    **{name: sql.runs.c[name] for name in (*sql.SETTLED, "id", "owner")},
    "expires_s": sa.Column("expires_s", sa.Float),
}
_ATTEMPT: _Columns = {name: sql.attempts.c[name] for name in sql.SENT}
_PAYLOAD: _Columns = {name: sql.payloads.c[name] for name in sql.KEPT}
_CHARGE: _Columns = {
    "tokens": counters.c.spent_tokens,
    "usd": counters.c.spent_usd,
    "unknown": counters.c.unknown_costs,
}
_HEAD: _Columns = {
    "workspace_id": sql.runs.c.workspace_id,
    "key": sql.runs.c.idempotency_key,
    "request_sha256": sql.runs.c.request_sha256,
}
_NAMES = {*_HEAD, "v", "run", "attempts", "payloads"}
_LARGEST = ((sa.SmallInteger, 2**15 - 1), (sa.BigInteger, 2**63 - 1), (sa.Integer, 2**31 - 1))
"""By type, the subtypes of Integer first."""


def to_line(settled: Settlement) -> bytes:
    """Return one line."""
    body = {
        "v": VERSION, "workspace_id": settled.workspace_id, "key": settled.key,
        "request_sha256": settled.request_sha256,
        "run": {name: _written(value) for name, value in settled.run.items()},
        "attempts": [{name: _written(value) for name, value in row.items()} for row in settled.attempts],
        "payloads": [{name: _written(value) for name, value in row.items()} for row in settled.payloads],
    }  # fmt: skip
    if settled.charge is not None:
        body["charge"] = {name: _written(value) for name, value in settled.charge._asdict().items()}
    return to_json(body).encode() + b"\n"


def from_line(line: bytes) -> Settlement:
    """Return the settlement of a line that `to_line` made.

    Raises:
        ValueError: It is none, or of another version; the text quotes no value.
    """
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(body, dict):
        raise ValueError("not an object")  # noqa: TRY004  # a value of a file, not an argument
    if body.get("v") != VERSION:
        raise ValueError(
            f"not of version {VERSION}, which is what this program reads: rename the file to end in .spool again "
            "where the program runs that wrote it"
        )
    if body.keys() - {"charge"} != _NAMES:
        raise ValueError(f"its names are not {', '.join(sorted(_NAMES))}")
    settled = Settlement(
        **_row({name: body[name] for name in _HEAD}, _HEAD, "line"),
        run=_row(body["run"], _RUN, "run"),
        attempts=_rows(body["attempts"], _ATTEMPT, "attempts"),
        payloads=_rows(body["payloads"], _PAYLOAD, "payloads"),
        charge=Charge(**_row(body["charge"], _CHARGE, "charge")) if "charge" in body else None,
    )
    _check_whole(settled)
    return settled


def _check_whole(settled: Settlement) -> None:
    if settled.run["status"] not in {SUCCEEDED, FAILED, CANCELLED}:
        raise ValueError("run: its status is none that a run ends with")
    if any(row["run_id"] != settled.run_id for row in settled.attempts):
        raise ValueError("attempts: one belongs to another run")
    if any(row["workspace_id"] != settled.workspace_id for row in settled.payloads):
        raise ValueError("payloads: one belongs to another workspace")


def _rows(raw: object, columns: _Columns, what: str) -> tuple[Values, ...]:
    if not isinstance(raw, list):
        raise ValueError(f"{what}: not a list")  # noqa: TRY004  # as above
    return tuple(_row(row, columns, what) for row in raw)


def _row(raw: object, columns: _Columns, what: str) -> Values:
    if not isinstance(raw, dict) or raw.keys() != columns.keys():
        raise ValueError(f"{what}: not the columns that belong there")
    row = {}
    for name, column in columns.items():
        try:
            row[name] = _read(raw[name], column)
        except (ValueError, TypeError, OverflowError, InvalidOperation):
            raise ValueError(f"{what}: the value of {name} does not fit its column") from None
    return row


def _written(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _read(raw: Any, column: sa.Column[Any]) -> Any:
    """Return a value as the column takes it.

    Raises:
        ValueError: It takes none like that.
        TypeError: As above.
        OverflowError: As above.
    """
    if raw is None and column.nullable:
        return None
    kind = column.type.python_type
    if kind is bytes:
        return base64.b64decode(raw, validate=True)
    if isinstance(column.type, UTCDateTime):
        moment = datetime.fromisoformat(raw)
        moment.astimezone(UTC)  # in years that there are
        raw, fits = moment, moment.tzinfo is not None
    elif kind is Decimal:
        raw = Decimal(raw) if isinstance(raw, str) else Decimal("NaN")
        fits = raw.is_finite() and 0 <= raw < MAX_COST_USD
    elif kind is str:
        fits = isinstance(raw, str) and _is_storable(raw, getattr(column.type, "length", None))
    elif kind is int:
        fits = type(raw) is int and 0 <= raw <= _largest(column)
    else:
        fits = type(raw) is kind or (kind is float and type(raw) is int)
    if not fits:
        raise ValueError
    return raw


def _is_storable(text: str, longest: int | None) -> bool:
    text.encode()  # a lone surrogate is a ValueError
    return "\x00" not in text and (longest is None or len(text) <= longest)


def _largest(column: sa.Column[Any]) -> int:
    return next(largest for kind, largest in _LARGEST if isinstance(column.type, kind))
