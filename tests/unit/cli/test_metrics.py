"""`signalbox metrics` as Prometheus meets it: a page over a real socket, of either database, until Ctrl-C."""

import asyncio
import inspect
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from http.client import HTTPConnection
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import pytest

from app.cli.metrics import metrics
from app.cli.scraping import samples_of, serve
from app.llm.metric_names import LEDGER_METRICS, LEDGER_RUNS
from app.llm.metrics import MOST_MODELS, OTHER
from app.llm.persistence.counted import Counted
from app.llm.persistence.rollup import ReportLine
from app.llm.persistence.spool.files import UNPLACED, SpoolFiles
from app.llm.persistence.usage import Measures
from tests.support import programs
from tests.support.ledger import Outside
from tests.support.scrapes import Page, read, total
from tests.support.usage import LONG_AGO, TODAY, hit_row, put, run_row
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_process import SIGNALBOX, environment


@asynccontextmanager
async def serving(host: str = "127.0.0.1") -> AsyncIterator[str]:
    """Yield the URL of a server on a free port."""
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve(host, 0, lambda url, _database: told.set_result(url)))
    try:
        await asyncio.wait([told, server], return_when=asyncio.FIRST_COMPLETED, timeout=20)
        yield told.result()
    finally:
        server.cancel()
        await asyncio.wait([server])


async def fetched(url: str) -> tuple[int, str]:
    return await asyncio.to_thread(_fetched, url)


def _fetched(url: str) -> tuple[int, str]:
    place = urlsplit(url)
    connection = HTTPConnection(str(place.hostname), place.port, timeout=30)
    try:
        connection.request("GET", place.path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


async def page(url: str) -> Page:
    status, text = await fetched(url)
    assert status == 200, text
    return read(text)


@pytest.fixture
def on_sqlite(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LLM_DATABASE_URL", sqlite_url)
    return sqlite_url


@pytest.fixture
async def filled(on_each_database: str) -> str:
    """Runs of all kinds, of today and long ago; and one that has not ended, whose owner is dead."""
    seen = Outside(on_each_database)
    await put(
        seen,
        run_row(TODAY, cost_usd=Decimal("0.25"), replayed_count=2),
        run_row(LONG_AGO, cost_usd=None),
        hit_row(TODAY),
        run_row(TODAY, status="FAILED", cost_usd=Decimal(0), input_tokens=None, output_tokens=None),
        run_row(TODAY, status="ABANDONED", provider="ollama", model="llama3.2"),
        run_row(TODAY, provider="tool", model="pay", cost_usd=Decimal(0)),
        run_row(TODAY, status="STARTED", lease_until=LONG_AGO),
    )
    await seen.close()
    return on_each_database


async def test_the_ledger_is_read_at_each_scrape(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = SpoolFiles(tmp_path / "spool", filled).new_name(UNPLACED)
    aside.parent.mkdir()
    aside.write_bytes(b"{}\n{}\n")
    monkeypatch.setenv("LLM_SPOOL_DIR", str(aside.parent))
    seen = Outside(filled)
    async with serving() as url:
        first = await page(url)
        await put(seen, run_row(TODAY))
        second = await page(url)
        assert (await fetched(url.replace("/metrics", "/other")))[0] == 404
    await seen.close()
    who = {"provider": "gemini", "model": "m"}
    assert total(first, "llm_ledger_runs_total", status="SUCCEEDED", **who) == 3
    assert total(second, "llm_ledger_runs_total", status="SUCCEEDED", **who) == 4
    for status, provider in (("FAILED", "gemini"), ("ABANDONED", "ollama"), ("SUCCEEDED", "tool")):
        assert total(first, "llm_ledger_runs_total", status=status, provider=provider) == 1
    assert total(first, "llm_ledger_tokens_total", kind="input", **who) == 20
    assert total(first, "llm_ledger_cost_usd_total", **who) == 0.25
    assert total(first, "llm_ledger_cost_unknown_total", **who) == 1
    assert total(first, "llm_ledger_hits_total", **who) == 1
    assert total(first, "llm_ledger_replays_total", **who) == 2
    assert total(first, "llm_ledger_saved_usd_total", **who) == 0.75
    assert total(first, "llm_ledger_live_runs", lease="over") == 1
    assert total(first, "llm_ledger_live_runs", lease="held") == 0
    assert total(first, "llm_ledger_spool_lines", state="unplaced") == 2
    assert LEDGER_METRICS.keys() == first.keys()


async def test_it_listens_on_loopback_unless_told_otherwise(on_sqlite: str) -> None:
    assert inspect.signature(metrics).parameters["host"].default == "127.0.0.1"
    async with serving("localhost") as url:
        assert urlsplit(url).hostname == "localhost"


async def test_a_ledger_that_is_away_is_told_to_prometheus_and_the_server_stays(on_sqlite: str) -> None:
    async with serving() as url:
        assert (await fetched(url))[0] == 200
        spoil(on_sqlite)
        for _ in range(2):
            status, text = await fetched(url)
            assert (status, text.count("\n")) == (503, 1)


def spoil(url: str) -> None:
    """Put something else in the place of a database."""
    file = Path(url.removeprefix("sqlite+aiosqlite:///"))
    for beside in file.parent.glob(f"{file.name}-*"):
        beside.unlink()
    file.write_bytes(b"no database any more" * 100)


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_ctrl_c_ends_it_quietly_and_frees_the_port(on_sqlite: str, options: tuple[str, ...]) -> None:
    child = programs.Program(
        [*SIGNALBOX, "metrics", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    out: IO[str] = child.stdout  # type: ignore[assignment]  # a pipe, as asked for
    told = out.readline()
    while options and not told.endswith("}\n"):
        told += out.readline()
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=20) == ("", "")
    assert child.returncode == 130
    said = json.loads(told) if options else {"url": told.split()[0], "database": told.split()[3].rstrip(";")}
    assert said["database"] == on_sqlite
    with socket.create_server(("127.0.0.1", urlsplit(said["url"]).port or 0)):
        pass


def test_an_address_that_is_none_is_one_line(signalbox: Run, on_sqlite: str) -> None:
    done = signalbox("metrics", "--port", "0", "--host", "256.0.0.1")
    assert done.code == 2
    assert done.told.startswith("signalbox: cannot listen on 256.0.0.1:0: ")


def test_without_its_extra_it_says_what_to_install(signalbox: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "app.cli.scraping", None)
    done = signalbox("metrics")
    assert (done.code, done.told) == (
        2,
        "signalbox: metrics need the extra `metrics`: pip install 'signalbox[metrics]'\n",
    )


def test_a_ledger_that_is_not_there_is_not_made(signalbox: Run) -> None:
    done = signalbox("metrics", "--port", "0")
    assert done.code == 1
    assert "there is no database" in done.told


def test_of_many_models_the_least_used_share_one_series() -> None:
    lines = [
        ReportLine(
            keys={"provider": "ollama", "model": f"m{number}"},
            is_tool=False,
            measures=Measures.of_row({**Measures().row(), "runs": number + 1}),
        )
        for number in range(MOST_MODELS + 2)
    ]
    samples = samples_of(Counted(lines=lines, held=0, over=0), {})[LEDGER_RUNS]
    succeeded = {values[:2]: figure for values, figure in samples if values[2] == "SUCCEEDED"}
    assert len(succeeded) == MOST_MODELS + 1
    assert succeeded[OTHER, OTHER] == 1 + 2
