"""`signalbox metrics` as Prometheus meets it: a page over a real socket, of either database, until Ctrl-C."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from http.client import HTTPConnection
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import pytest

from app.cli.scraping import samples_of
from app.llm.metric_names import LEDGER_METRICS, LEDGER_RUNS
from app.llm.metrics import MOST_MODELS, OTHER
from app.llm.persistence.counted import Counted
from app.llm.persistence.rollup import ReportLine
from app.llm.persistence.spool.files import UNPLACED, SpoolFiles
from app.llm.persistence.usage import Measures
from tests.support.ledger import Outside
from tests.support.scrapes import Page, read, total
from tests.support.signals import heed_ctrl_c
from tests.support.usage import LONG_AGO, TODAY, hit_row, put, run_row
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_process import SIGNALBOX, environment


@dataclass
class Server:
    """A process that serves, and how it ended."""

    first_line: str
    code: int = 0
    rest: tuple[str, str] = ("", "")

    @property
    def url(self) -> str:
        return self.first_line.split()[0]


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """Yield a process that serves on a free port; end it by Ctrl-C."""
    child = subprocess.Popen(
        [*SIGNALBOX, "metrics", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=heed_ctrl_c,  # noqa: PLW1509  # it sets one signal, no more
    )
    out: IO[str] = child.stdout  # type: ignore[assignment]  # a pipe, as asked for
    server = Server(out.readline())
    try:
        yield server
    finally:
        child.send_signal(signal.SIGINT)
        server.rest = child.communicate(timeout=20)
        server.code = child.returncode


def fetched(url: str) -> tuple[int, str]:
    place = urlsplit(url)
    connection = HTTPConnection(str(place.hostname), place.port, timeout=30)
    try:
        connection.request("GET", place.path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def page(url: str) -> Page:
    status, text = fetched(url)
    assert status == 200, text
    return read(text)


@pytest.fixture
def filled(on_each_database: str) -> str:
    """Runs of all kinds, of today and long ago; two that have not ended, one of them with a dead owner."""

    async def fill() -> None:
        seen = Outside(on_each_database)
        await put(
            seen,
            run_row(TODAY, cost_usd=Decimal("0.25"), replayed_count=2),
            run_row(LONG_AGO, cost_usd=None),
            hit_row(TODAY),
            run_row(TODAY, status="FAILED", cost_usd=Decimal(0), input_tokens=None, output_tokens=None),
            run_row(TODAY, status="ABANDONED", provider="ollama", model="llama3.2"),
            run_row(TODAY, provider="tool", model="pay", cost_usd=Decimal(0)),
            run_row(TODAY, status="STARTED"),
        )
        await seen.close()

    asyncio.run(fill())
    return on_each_database


def test_the_ledger_is_read_at_each_scrape(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = SpoolFiles(tmp_path / "spool", filled).new_name(UNPLACED)
    aside.parent.mkdir()
    aside.write_bytes(b"{}\n{}\n")
    monkeypatch.setenv("LLM_SPOOL_DIR", str(aside.parent))

    async def more() -> None:
        seen = Outside(filled)
        await put(seen, run_row(TODAY))
        await seen.close()

    with serving() as server:
        first = page(server.url)
        asyncio.run(more())
        second = page(server.url)
        assert fetched(server.url.replace("/metrics", "/other"))[0] == 404
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


def test_ctrl_c_says_nothing_and_frees_the_port(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DATABASE_URL", sqlite_url)
    with serving() as server:
        assert page(server.url)
    assert (server.code, server.rest) == (130, ("", ""))
    port = str(urlsplit(server.url).port)
    with serving("--port", port) as again:
        assert again.url == server.url
    done = subprocess.run(
        [*SIGNALBOX, "metrics", "--port", "0", "--host", "256.0.0.1"],
        capture_output=True, text=True, env=environment(), check=False, timeout=50,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("signalbox: cannot listen on 256.0.0.1:0: ")


def test_it_listens_on_loopback_unless_told_otherwise(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_DATABASE_URL", sqlite_url)
    with serving() as server:
        assert urlsplit(server.url).hostname == "127.0.0.1"
    with serving("--host", "localhost") as server:
        assert urlsplit(server.url).hostname == "localhost"


def test_a_ledger_that_is_away_is_told_to_prometheus_and_the_server_stays(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLM_DATABASE_URL", sqlite_url)
    file = Path(sqlite_url.removeprefix("sqlite+aiosqlite:///"))
    with serving() as server:
        assert fetched(server.url)[0] == 200
        whole = file.read_bytes()
        for beside in tmp_path.glob(f"{file.name}-*"):
            beside.unlink()
        file.write_bytes(b"no database any more" * 100)
        status, text = fetched(server.url)
        assert (status, text.count("\n")) == (503, 1)
        file.write_bytes(whole)


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


def test_the_json_line_names_where(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DATABASE_URL", sqlite_url)
    with serving("--json") as server:
        pass
    told = json.loads(server.first_line + server.rest[0])
    assert told["url"].startswith("http://127.0.0.1:")
    assert told["database"] == sqlite_url
