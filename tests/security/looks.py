"""Looks for words where they must not be: in errors and all that hangs on them, in rows, in files."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import select

from app.llm.persistence.models import LLMAttempt, LLMPayload, LLMRun
from tests.support.ledger import Outside, unpacked

KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(range(100, 132))).decode()
PROMPT, ANSWER = "marmalade-prompt-of-ours", "periwinkle-answer-of-theirs"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and everything behind it: causes, contexts, members of groups, errors among its facts."""
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
        waiting += [each for each in vars(one).values() if isinstance(each, BaseException)]


def _frames(trace: TracebackType | None) -> Iterator[dict[str, Any]]:
    while trace is not None:
        yield {
            name: value
            for name, value in trace.tb_frame.f_locals.items()
            if "/app/" in trace.tb_frame.f_code.co_filename
        }
        trace = trace.tb_next


def told_by(error: BaseException) -> str:
    """Return all that logging an error, in whatever detail, could show."""
    said: list[str] = []
    for one in chain(error):
        said += [str(one), repr(one), repr(one.args), repr(vars(one)), *getattr(one, "__notes__", ())]
        said += [f"{value!r} {value!s}" for local in _frames(one.__traceback__) for value in local.values()]
    return "\n".join(said)


def on_disk(directory: Path) -> bytes:
    """Return the bytes of every file below a directory, spooled payloads also as anybody can unpack them."""
    parts = []
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            parts.append(path.read_bytes())
        if path.suffix == ".spool":
            lines = map(json.loads, parts[-1].splitlines())
            rows = [row for line in lines for row in line["payloads"]]
            parts += [unpacked({**row, "bytes": base64.b64decode(row["bytes"])}) for row in rows]
    return b"\n".join(parts)


async def in_rows(outside: Outside) -> bytes:
    """Return every value of every row, texts unpacked."""
    parts = [unpacked(payload) for payload in await outside.payloads()]
    for model in (LLMRun, LLMAttempt, LLMPayload):
        for row in await outside.rows(select(model.__table__)):
            parts += [value if isinstance(value, bytes) else repr(value).encode() for value in row.values()]
    return b"\n".join(parts)
