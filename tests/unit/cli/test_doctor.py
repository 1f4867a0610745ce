import json
from collections.abc import Iterator

import pytest

from tests.support.doctor import KEY, House, house
from tests.support.terminals import on_terminal
from tests.unit.cli.conftest import Run


@pytest.fixture
def at_home(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """All works, and the environment says so."""
    with house(sqlite_url) as made:
        for name, value in made.given.items():
            monkeypatch.setenv(f"LLM_{name.upper()}", value)
        yield made


def marks(out: str) -> dict[str, str]:
    """Return the mark of each line by its subject."""
    words = (line.split() for line in out.splitlines())
    return {each[1]: each[0] for each in words if len(each) > 1 and each[0] in {"ok", "warn", "FAIL", "-"}}


def test_one_screen_says_that_all_works(signalbox: Run, at_home: House) -> None:
    done = signalbox("doctor")
    assert (done.code, done.err) == (0, "")
    said = marks(done.out)
    assert {"settings", "database", "tables", "clock", "ollama:llama3.2", "LiteLLM", "lane"} < set(said)
    assert set(said.values()) - {"ok"} <= {"warn"}, "the disk of this machine may be nearly full"
    assert "\x1b" not in done.out
    assert " working" in done.out.splitlines()[-1]


def test_what_is_red_comes_with_its_remedy_and_exit_code_one(signalbox: Run, at_home: House) -> None:
    at_home.stubs["ollama"].down()
    done = signalbox("doctor")
    assert (done.code, marks(done.out)["ollama"]) == (1, "FAIL")
    assert "-> start it (`ollama serve`), or correct LLM_OLLAMA_API_BASE" in done.out
    assert "1 not working" in done.out.splitlines()[-1]


def test_the_document_has_every_finding(
    signalbox: Run, at_home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_OPENAI_API_KEY", "wrong-key-9876543210")
    done = signalbox("doctor", "--json")
    document = json.loads(done.out)
    assert (done.code, document["healthy"]) == (1, False)
    [fault] = [each for each in document["findings"] if each["state"] == "fault"]
    assert (fault["subject"], "LLM_OPENAI_API_KEY" in fault["remedy"]) == ("openai key", True)
    assert (KEY in done.out, "wrong-key" in done.out) == (False, False)


def test_a_routing_file_may_be_tried(signalbox: Run, at_home: House) -> None:
    with open("other.yaml", "w") as file:  # noqa: PTH123
        file.write("profilse: {}\n")
    done = signalbox("doctor", "--config", "other.yaml")
    assert (done.code, marks(done.out)["settings"]) == (1, "FAIL")
    assert "other.yaml:1: profilse is not known here" in done.out


def test_a_time_that_is_none_is_refused(signalbox: Run) -> None:
    done = signalbox("doctor", "--timeout", "nan")
    assert (done.code, "--timeout" in done.told) == (2, True)


def test_colours_are_for_terminals(at_home: House) -> None:
    at_home.stubs["ollama"].down()
    code, said = on_terminal("doctor")
    assert code == 1
    assert "\x1b[1;31mFAIL" in said
    assert "\x1b[32mok" in said
