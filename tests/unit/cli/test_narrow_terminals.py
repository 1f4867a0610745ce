"""On a terminal that is too narrow for a table each row is a line, which wraps; no word or number is cut into columns."""

import re

from app.llm.testing.client import ScriptedClient
from tests.support.terminals import on_terminal
from tests.unit.cli.conftest import Run

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def lines(*args: str, columns: int) -> list[str]:
    code, said = on_terminal(*args, COLUMNS=str(columns))
    assert code == 0
    return _COLOUR.sub("", said).replace("\r", "").splitlines()


def test_runs_are_lines_where_their_table_has_no_room(signalbox: Run, client: ScriptedClient) -> None:
    for name in ("one", "two"):
        assert signalbox("chat", name, "--model", "ollama:llama3.2").code == 0
    narrow = lines("runs", "list", columns=80)
    assert [re.split(" {2,}", line)[2:5] for line in narrow] == [
        ["SUCCEEDED", "ollama:llama3.2", "local"]
    ] * 2
    assert lines("runs", "list", columns=200)[0].startswith("run  ")


def test_a_report_is_lines_where_its_table_has_no_room(signalbox: Run, client: ScriptedClient) -> None:
    assert signalbox("chat", "one", "--model", "ollama:llama3.2", "--stage", "draft").code == 0
    [line] = [line for line in lines("report", "--by", "stage", columns=60) if line.startswith("draft")]
    assert line.startswith("draft  runs 1  failed 0  hits 0")
    assert line.endswith("█")
