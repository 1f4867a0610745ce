"""What an export holds, in both formats; and that a file is there whole or not at all."""

import asyncio
import base64
import io
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from app.cli import exporting as files
from app.cli.output import emit, status_line
from app.llm.errors import LLMLedgerUnavailable
from app.llm.persistence import exporting
from app.llm.persistence.models import LLMAttempt, LLMRun
from app.llm.testing.client import ScriptedClient
from tests.support.ledger import Outside
from tests.support.usage import LONG_AGO, TODAY, hit_row, put, put_send, run_row
from tests.unit.cli.conftest import Run, Terminal

KEY = base64.b64encode(b"k" * 32).decode()
EXACT = Decimal("123456789.123456789")
"""A float has no room for it."""
PAID = run_row(LONG_AGO, stage="draft", cost_usd=EXACT, metadata='{"né": 1}')
LATER = run_row(TODAY - timedelta(days=1), workspace_id="a first one", status="FAILED", error_code="timeout")
ROWS = [LATER, PAID, *(hit_row(TODAY - timedelta(days=1)) for _ in range(4))]


@pytest.fixture
def filled(on_each_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Six runs in two workspaces, four of them of one moment, in pages of two."""
    monkeypatch.setattr(exporting, "PAGE", 2)

    async def fill() -> None:
        seen = Outside(on_each_database)
        await put(seen, *reversed(ROWS))
        await put_send(seen, PAID, ordinal=2, cost_usd=EXACT)
        await put_send(seen, PAID, ordinal=1, status="FAILED", error_code="overloaded")
        await seen.close()

    asyncio.run(fill())
    return on_each_database


def lines(signalbox: Run, *options: str) -> list[dict[str, Any]]:
    done = signalbox("export", "-o", "-", *options)
    assert (done.code, done.err) == (0, "")
    return [json.loads(line) for line in done.out.splitlines()]


@pytest.mark.usefixtures("filled")
def test_each_run_is_there_once_by_workspace_and_time_with_its_sends_and_all_digits(signalbox: Run) -> None:
    rows = lines(signalbox)
    assert [row["id"] for row in rows[:2]] == [LATER["id"], PAID["id"]]
    assert [row["id"] for row in rows[2:]] == sorted(row["id"] for row in ROWS[2:])
    paid = rows[1]
    assert (paid["cost_usd"], paid["metadata"], paid["possibly_paid"]) == (
        "123456789.123456789",
        {"né": 1},
        False,
    )
    assert paid["created_at"] == f"{LONG_AGO:%Y-%m-%dT%H:%M:%S}.000000+00:00"
    assert [send["ordinal"] for send in paid["attempts"]] == [1, 2]
    assert [send["cost_usd"] for send in paid["attempts"]] == [None, "123456789.123456789"]
    assert list(paid) == [column.name for column in exporting.COLUMNS]


@pytest.mark.usefixtures("filled")
def test_filters_choose(signalbox: Run) -> None:
    assert [row["id"] for row in lines(signalbox, "--stage", "draft")] == [PAID["id"]]
    assert [row["id"] for row in lines(signalbox, "--error", "timeout")] == [LATER["id"]]
    assert len(lines(signalbox, "--since", "7d")) == 5
    assert len(lines(signalbox, "--workspace", "w1", "--model", "gemini:m")) == 5
    assert lines(signalbox, "--workspace", "nobody") == []


@pytest.mark.usefixtures("filled")
def test_where_only_stderr_is_a_terminal_stdout_takes_the_runs(
    signalbox: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Terminal(io.BytesIO()))
        patch.setenv("TERM", "xterm-256color")
        piped = signalbox("export", "-o", "-").out
    assert piped == signalbox("export", "-o", "-").out != ""


def test_a_line_on_stderr_leaves_stdout_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", Terminal(io.BytesIO()))
    with status_line("counting"):
        emit("counted")
    assert capsys.readouterr().out == "counted\n"


@pytest.mark.usefixtures("filled")
def test_a_file_of_lines_is_told_of(signalbox: Run) -> None:
    done = signalbox("export", "-o", "runs.jsonl")
    assert (done.code, done.out, done.err) == (0, "6 runs in runs.jsonl\n", "")
    told = json.loads(signalbox("export", "-o", "runs.jsonl", "--json").out)
    assert told == {"file": "runs.jsonl", "format": "jsonl", "runs": 6, "unread": 0}
    assert [json.loads(line) for line in Path("runs.jsonl").read_text().splitlines()] == lines(signalbox)
    assert Path("runs.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("name", ["runs.jsonl", "runs.parquet"])
def test_what_is_cut_short_leaves_the_former_file_and_nothing_else(
    signalbox: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = exporting.pages

    async def cut(*args: Any) -> AsyncIterator[exporting.Page]:
        async for page in whole(*args):
            yield page
            raise LLMLedgerUnavailable("gone")

    Path(name).write_text("the former one")
    before = set(Path().iterdir())
    monkeypatch.setattr(exporting, "pages", cut)
    done = signalbox("export", "-o", name)
    assert (done.code, done.told) == (1, "signalbox: gone\n")
    assert Path(name).read_text() == "the former one"
    assert {path.name for path in Path().iterdir()} == {path.name for path in before}


@pytest.mark.usefixtures("filled")
def test_parquet_holds_the_same_exactly(signalbox: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    from app.cli import parquet

    monkeypatch.setattr(parquet, "ROWS_IN_GROUP", 4)
    assert signalbox("export", "-o", "runs.parquet", "--texts").out == "6 runs in runs.parquet\n"
    file = pq.ParquetFile("runs.parquet")
    assert [file.metadata.row_group(place).num_rows for place in range(file.num_row_groups)] == [5, 1]
    schema = file.schema_arrow
    assert str(schema.field("cost_usd").type) == "decimal128(18, 9)"
    assert str(schema.field("created_at").type) == "timestamp[us, tz=UTC]"
    rows = file.read().to_pylist()
    file.close()
    paid = rows[1]
    assert (paid["cost_usd"], paid["created_at"]) == (EXACT, LONG_AGO.astimezone(UTC))
    assert (json.loads(paid["metadata"]), paid["request"]) == ({"né": 1}, None)
    assert [send["cost_usd"] for send in paid["attempts"]] == [None, EXACT]
    assert [row["id"] for row in rows] == [row["id"] for row in lines(signalbox)]


def test_texts_are_there_when_asked_for_and_when_they_can_be_read(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch, on_each_database: str
) -> None:
    signalbox("chat", "What is a signal box?")
    [row] = lines(signalbox, "--texts")
    assert row["request"]["request"]["messages"][0]["content"][0]["text"] == "What is a signal box?"
    assert row["response"]["parts"][0]["text"] == "answer 1"
    monkeypatch.setenv("LLM_PAYLOAD_KEY", KEY)
    signalbox("chat", "And what is a signal?")
    monkeypatch.delenv("LLM_PAYLOAD_KEY")
    done = signalbox("export", "-o", "-", "--texts")
    assert [json.loads(line)["response"] is None for line in done.out.splitlines()] == [False, True]
    assert done.err.startswith("2 texts are left out: they are encrypted")


def test_half_of_a_surrogate_pair_is_written_as_json_says() -> None:
    assert files.line_of({"text": "é\ud83d"}) == '{"text":"\\u00e9\\ud83d"}'
    assert files.line_of({"text": "é"}) == '{"text":"é"}'


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-o", "-", "--json"), "stdout takes the runs as JSON lines"),
        (("-o", "-", "--format", "parquet"), "stdout takes the runs as JSON lines"),
        (("-o", "/dev/null"), "/dev/null is no place for a file"),
        (("-o", "nowhere/runs.jsonl"), "nowhere/runs.jsonl is no place for a file"),
        (("-o", "runs.jsonl", "--since", "soon"), "'soon' is no age"),
        (("-o", "runs.csv", "--format", "csv"), "csv"),
    ],
)
def test_nonsense_is_refused_and_nothing_is_written(
    signalbox: Run, options: tuple[str, ...], why: str
) -> None:
    before = set(Path().iterdir())
    done = signalbox("export", *options)
    assert (done.code, why in done.told) == (2, True)
    assert set(Path().iterdir()) == before


def test_parquet_needs_its_extra(signalbox: Run, monkeypatch: pytest.MonkeyPatch, filled: str) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "app.cli.parquet", raising=False)
    done = signalbox("export", "-o", "runs.parquet")
    assert (done.code, "pip install 'signalbox[parquet]'" in done.told) == (2, True)


def test_every_column_of_the_ledger_is_exported_or_left_out_on_purpose() -> None:
    exported = {column.name for column in exporting.COLUMNS} - {"attempts"}
    columns = {column.name for column in LLMRun.__table__.c} - {"request_payload", "response_payload"}
    assert exported | exporting.LEFT_OUT == columns
    assert not exported & exporting.LEFT_OUT
    sends = {column.name for column in LLMAttempt.__table__.c}
    left = {"run_id", "candidate_sha256", "wire_sha256", "retry_after_s"}
    assert sends - {column.name for column in exporting.SENDS} == left
