"""`runs tail` from outside: its lines, its end, and a database that goes away. What it follows is tested with the ledger."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from app.cli import tail
from app.llm.errors import LLMLedgerSchema, LLMLedgerUnavailable
from app.llm.persistence.following import Event
from app.llm.testing.client import ScriptedClient
from tests.support import programs
from tests.support.usage import TODAY, run_row
from tests.unit.cli.conftest import Run

ROW = {**run_row(TODAY, stage="draft", idempotency_key="k"), "error_code": None}


@pytest.mark.usefixtures("on_each_database")
def test_lines_are_told_as_runs_come_until_ctrl_c(signalbox: Run, client: ScriptedClient) -> None:
    signalbox("chat", "one", "--stage", "draft")
    child = programs.Program(
        [sys.executable, "-m", "app", "runs", "tail", "--since", "1h", "--interval", "0.05", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout
    first = [json.loads(child.stdout.readline()) for _ in range(2)]
    signalbox("chat", "two", "--stage", "check")
    second = [json.loads(child.stdout.readline()) for _ in range(2)]
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=20)
    assert (child.returncode, out, err) == (130, "", "")
    assert [(each["event"], each["stage"], each["status"]) for each in first + second] == [
        ("started", "draft", "STARTED"),
        ("ended", "draft", "SUCCEEDED"),
        ("started", "check", "STARTED"),
        ("ended", "check", "SUCCEEDED"),
    ]


async def told(follower: object, capsys: pytest.CaptureFixture[str], *, as_json: bool) -> list[str]:
    await tail._told_once_it_is_back(follower, 0, as_json=as_json)  # type: ignore[arg-type]
    return capsys.readouterr().out.splitlines()


class Following:
    """Raises what it is given, then tells of one run."""

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)

    async def poll(self) -> AsyncIterator[Event]:
        if self.faults:
            raise self.faults.pop(0)
        yield Event(kind="ended", at=TODAY, run=ROW)


async def test_a_line_says_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = await told(Following(), capsys, as_json=False)
    assert line == (
        f"{TODAY:%Y-%m-%d} 12:00:00  {ROW['id']}  SUCCEEDED  gemini:m  w1/draft  live  10 + 5 tokens  100 ms  0.5 USD  key k"
    )


async def test_a_database_that_goes_away_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    follower = Following(LLMLedgerUnavailable("away"), LLMLedgerUnavailable("away"))
    await tail._told_once_it_is_back(follower, 0, as_json=True)  # type: ignore[arg-type]
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    assert printed.err == "signalbox: away; waiting for it\nsignalbox: the database is back\n"


async def test_tables_that_do_not_fit_end_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LLMLedgerSchema):
        await told(Following(LLMLedgerSchema("gone")), capsys, as_json=True)


def test_it_makes_no_database(signalbox: Run) -> None:
    done = signalbox("runs", "tail")
    assert (done.code, "there is no database" in done.told) == (1, True)
