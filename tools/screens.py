"""The screens of docs/SCREENS.md: what commands print of a ledger that real calls filled: `python -m tools.screens`.

The calls go through routing, retries, the cache and a database; only the providers' answers are scripted. Ids, times and
latencies are set to fixed ones afterwards, so that the same code always prints the same screens.
"""

import argparse
import asyncio
import inspect
import io
import logging
import os
import shlex
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, closing, contextmanager, redirect_stdout
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from app.bootstrap import build_llm_service
from app.cli import NAME
from app.cli import main as signalbox
from app.docs import with_blocks
from app.llm import LLMCallContext, LLMRequest, Message
from app.llm.errors import LLMError, LLMUnavailable
from app.llm.persistence.exporting import COLUMNS, SENDS, TEXTS, Column, Kind
from app.llm.settings import load_settings
from app.llm.testing.client import Scripted, ScriptedClient, text_reply

PAGE = Path(__file__).resolve().parents[1] / "docs" / "SCREENS.md"
FIRST = datetime(2026, 3, 2, 9, 15)  # noqa: DTZ001  # as SQLite keeps it
APART = timedelta(hours=7, minutes=3)
_ID = "019cadf3-{:04x}-7000-8000-00000000000{}"

IN_FORCE = """\
providers:
  gemini: {api_key: a-key}
profiles:
  balanced: [ollama:llama3.2, openai:gpt-4.1-mini, gemini:gemini-2.5-flash]
"""
CANDIDATE = IN_FORCE.replace("ollama:llama3.2, openai:gpt-4.1-mini, ", "")


class Asked(NamedTuple):
    """A call, and what each of its sends brings."""

    stage: str
    prompt: str
    outcomes: tuple[Scripted, ...]
    latency_ms: float
    key: str | None = None


_LETTER = "Nordlys Rail AS writes: the track sensors arrived broken. Is this a complaint?"
_DRAFT = "Answer Nordlys Rail AS in one sentence."
_AWAY = LLMUnavailable(
    "Ollama does not answer at http://localhost:11434", provider="ollama", model="llama3.2"
)
CALLS = (
    Asked("triage", _LETTER, (text_reply("Yes, a complaint.", input_tokens=3_120, output_tokens=5),), 412.0),
    Asked(
        "draft",
        _DRAFT,
        (
            _AWAY,
            _AWAY,
            text_reply("We are sorry, and will send new ones.", input_tokens=3_240, output_tokens=811),
        ),
        1_874.0,
        key="letter-17/draft",
    ),
    Asked("triage", _LETTER, (), 0.6),
    Asked(
        "check",
        "Is that polite?",
        (_AWAY, _AWAY, text_reply("Yes.", input_tokens=910, output_tokens=260)),
        733.0,
    ),
    Asked("draft", "Shorter, please.", (_AWAY,) * 4, 2_610.0),
    Asked(
        "draft",
        "Now in Danish.",
        (text_reply("Det beklager vi.", input_tokens=850, output_tokens=40),),
        655.0,
    ),
)


def main() -> int:
    """Write the screens, or with `--check` say whether they are stale; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.screens", description=inspect.getdoc(main))
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the screens are stale")
    check = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    wanted = renewed(text)
    if wanted == text:
        return 0
    if not check:
        PAGE.write_text(wanted, encoding="utf-8")
    sys.stderr.write(f"{PAGE.name}: {'stale, run `python -m tools.screens`' if check else 'written'}\n")
    return int(check)


def renewed(text: str) -> str:
    """Return the page with its screens and its table of columns renewed."""
    with _world() as ids:
        commands = {
            "runs-list": "runs list",
            "runs-show": f"runs show {ids[1]}",
            "report": "report --by stage --by provider --since 520w",
            "simulate": "simulate --since 520w --config candidate.yaml",
        }
        screens = {f"screen-{name}": _screen(command) for name, command in commands.items()}
    blocks: Mapping[str, Callable[[], str]] = {
        **{name: lambda shown=shown: shown for name, shown in screens.items()},  # type: ignore[misc]
        "columns": lambda: _table((*COLUMNS, *TEXTS)),
        "sends": lambda: _table(SENDS),
    }
    return with_blocks(text, blocks)


def _screen(command: str) -> str:
    shown = io.StringIO()
    with redirect_stdout(shown):
        code = signalbox(shlex.split(command))
    if code:
        raise RuntimeError(f"signalbox {command}: exit code {code}")
    return f"```console\n$ signalbox {command}\n{shown.getvalue().rstrip()}\n```"


@contextmanager
def _world() -> Iterator[list[str]]:
    """Yield the ids of the recorded calls, in a directory and an environment of their own."""
    kept = dict(os.environ)
    with TemporaryDirectory(prefix="signalbox-screens-") as directory, chdir(directory):
        for name in kept:
            if name.startswith(("LLM_", "GEMINI_")):
                del os.environ[name]
        events = logging.getLogger(NAME)
        level = events.level
        events.setLevel(logging.CRITICAL)
        os.environ |= {"LLM_CONFIG_FILE": "routing.yaml", "LLM_CACHE_ENABLED": "true"}
        Path("routing.yaml").write_text(IN_FORCE)
        Path("candidate.yaml").write_text(CANDIDATE)
        try:
            asyncio.run(_call())
            yield _made_lasting("signalbox.db")
        finally:
            events.setLevel(level)
            os.environ.clear()
            os.environ |= kept


async def _call() -> None:
    client = ScriptedClient()
    async with build_llm_service(load_settings(), client=client) as service:
        for asked in CALLS:
            client.script[:] = asked.outcomes
            request = LLMRequest(messages=(Message.user(asked.prompt),), idempotency_key=asked.key)
            context = LLMCallContext(workspace_id="acme", pipeline_run_id="letter-17", stage=asked.stage)
            try:
                await service.chat(request, context=context)
            except LLMError as error:
                if not isinstance(error, LLMUnavailable):
                    raise
            await service.drain()  # the row of a hit is written a moment later


def _made_lasting(file: str) -> list[str]:
    """Set what differs from run to run to fixed values; return the ids, oldest first."""
    with closing(sqlite3.connect(file)) as database, database:
        found = [row[0] for row in database.execute("SELECT id FROM llm_runs ORDER BY rowid")]
        ids = [_ID.format(place * 0x1111, place + 1) for place in range(len(found))]
        for place, (old, new, asked) in enumerate(zip(found, ids, CALLS, strict=True)):
            begin = FIRST + place * APART
            end = begin + timedelta(milliseconds=asked.latency_ms)
            database.execute(
                "UPDATE llm_runs SET id = ?, created_at = ?, finished_at = ?, lease_until = ?, expires_at = NULL,"
                " latency_ms = ?, queue_wait_ms = 0, owner = 'build-7:4711:5b0c2f1e9a3d' WHERE id = ?",
                (new, _at(begin), _at(end), _at(begin + timedelta(minutes=5)), asked.latency_ms, old),
            )
            for column in ("source_run_id", "supersedes"):
                database.execute(f"UPDATE llm_runs SET {column} = ? WHERE {column} = ?", (new, old))  # noqa: S608  # ours
            _spread_sends(database, old, new, begin, end)
    return ids


def _spread_sends(database: sqlite3.Connection, old: str, new: str, begin: datetime, end: datetime) -> None:
    (sends,) = database.execute("SELECT count(*) FROM llm_attempts WHERE run_id = ?", (old,)).fetchone()
    for ordinal in range(1, sends + 1):
        share = (end - begin) / sends
        database.execute(
            "UPDATE llm_attempts SET run_id = ?, started_at = ?, finished_at = ? WHERE run_id = ? AND ordinal = ?",
            (new, _at(begin + (ordinal - 1) * share), _at(begin + ordinal * share), old, ordinal),
        )


def _at(time: datetime) -> str:
    return time.isoformat(" ", "milliseconds")


_PARQUET = {
    Kind.TEXT: "string",
    Kind.COUNT: "int64",
    Kind.FLAG: "bool",
    Kind.MILLISECONDS: "double",
    Kind.DOLLARS: "decimal128(18, 9)",
    Kind.TIME: "timestamp[us, UTC]",
    Kind.JSON: "string of JSON",
    Kind.SENDS: "list of structs",
}
_JSON = {
    Kind.TEXT: "text",
    Kind.COUNT: "number",
    Kind.FLAG: "true, false",
    Kind.MILLISECONDS: "number",
    Kind.DOLLARS: "text, nine places",
    Kind.TIME: "text, RFC 3339",
    Kind.JSON: "value",
    Kind.SENDS: "list of objects",
}


def _table(columns: tuple[Column, ...]) -> str:
    head = "| Column | JSON | Parquet | Meaning |\n| --- | --- | --- | --- |\n"
    return head + "\n".join(
        f"| `{each.name}` | {_JSON[each.kind]} | {_PARQUET[each.kind]} | {each.meaning} |" for each in columns
    )


if __name__ == "__main__":
    sys.exit(main())
