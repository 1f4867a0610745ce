import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.llm.settings import LLMSettings
from tests.support import programs
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_process import environment

FILE = """\
providers:
  gemini:
    api_key: ${TEAM_KEY}
  ollama:
    api_base: http://${HOST}:11434
    headers: "X-Proxy: in-clear-0123"
models:
  ollama:a:
    num_ctx: 2048
stages:
  plan: fast
"""


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> str:
    Path("signalbox.yaml").write_text(FILE)
    monkeypatch.setenv("TEAM_KEY", "k-0123456789")
    monkeypatch.setenv("HOST", "gpu-box")
    return "signalbox.yaml"


def rows(out: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}


def test_show_says_what_is_in_force_and_where_it_came_from(
    signalbox: Run, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setenv("LLM_QUEUE_LIMIT", "7")
    Path(".env").write_text("LLM_MAX_ATTEMPTS=3\n")
    done = signalbox("config", "show", "--config", file)
    said = rows(done.out)
    assert done.code == 0
    assert said["LLM_QUEUE_LIMIT"] == ["7", "environment", "LLM_QUEUE_LIMIT"]
    assert said["LLM_MAX_ATTEMPTS"] == ["3", ".env", "LLM_MAX_ATTEMPTS"]
    assert said["LLM_CONCURRENCY_LIMIT"] == ["64", "default"]
    assert said["LLM_GEMINI_API_KEY"] == ["********", "signalbox.yaml:3:", "providers.gemini.api_key"]
    assert said["LLM_OLLAMA_API_BASE"][0] == "http://${HOST}:11434"
    assert said["models.ollama:a.num_ctx"] == ["2048", "signalbox.yaml:9:", "models.ollama:a.num_ctx"]
    assert said["stages.plan"] == ["fast", "signalbox.yaml:11:", "stages.plan"]


def test_show_names_every_setting_and_no_secret(
    signalbox: Run, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setenv("LLM_DATABASE_URL", "postgresql+asyncpg://me:d-secret@host/name")
    monkeypatch.setenv("LLM_CONFIG_FILE", file)
    for args in ((), ("--json",)):
        done = signalbox("config", "show", *args)
        for secret in ("k-0123456789", "d-secret", "in-clear-0123", "gpu-box"):
            assert secret not in done.out
        assert "postgresql+asyncpg://me:***@host/name" in done.out
    shown = {each["name"]: each for each in json.loads(done.out)}
    within = {"LLM_MODEL_OVERRIDES": "models.ollama:a.num_ctx", "LLM_STAGE_PROFILES": "stages.plan"}
    named = {within.get(f"LLM_{name.upper()}", f"LLM_{name.upper()}") for name in LLMSettings.model_fields}
    assert set(shown) == named
    assert shown["LLM_GEMINI_API_KEY"] == {
        "name": "LLM_GEMINI_API_KEY", "value": "********", "source": "file",
        "where": "signalbox.yaml:3: providers.gemini.api_key",
    }  # fmt: skip
    assert shown["LLM_OLLAMA_API_KEY"]["value"] is None


def test_check_is_silent_about_what_is_right_and_warns_of_a_secret_in_clear(
    signalbox: Run, file: str
) -> None:
    done = signalbox("config", "check", "--config", file)
    assert done.code == 0
    assert done.out.startswith("no faults: signalbox.yaml; fast: ollama:llama3.2, gemini:gemini-2.5-flash;")
    assert "warning: signalbox.yaml:6: providers.ollama.headers holds a secret as it is" in done.err
    assert "warning: models.ollama:a: no profile lists it" in done.err
    assert "in-clear-0123" not in done.err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("profiles:\n  fast: [gemini]\n", "fault: no candidate of profile fast can serve this request"),
        ("providers:\n  ollama: off\n  gemini: off\n", "fault: no candidate of profile balanced can serve"),
        (
            "fallback: gemini\n",
            "fault: profile fast: the fallback gemini:gemini-2.5-flash is never asked (no_credentials)",
        ),
        ("database_url: mysql://x\n", "fault: LLM_DATABASE_URL=mysql://x: write sqlite+aiosqlite:///FILE"),
    ],
    ids=["profile", "providers", "fallback", "database"],
)
def test_check_fails_for_what_cannot_work(signalbox: Run, text: str, told: str) -> None:
    Path("signalbox.yaml").write_text(text)
    done = signalbox("config", "check", "--config", "signalbox.yaml")
    assert (done.code, done.out) == (1, "")
    assert told in done.err
    faults = json.loads(signalbox("config", "check", "--config", "signalbox.yaml", "--json").out)["faults"]
    assert any(told.removeprefix("fault: ") in fault for fault in faults)


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_file_that_cannot_be_read_ends_with_two_and_the_line(signalbox: Run, command: str) -> None:
    Path("signalbox.yaml").write_text("max_attempts: 3\nprofilse:\n  fast: [ollama]\n")
    done = signalbox("config", command, "--config", "signalbox.yaml")
    assert done.code == 2
    assert done.told == "signalbox: signalbox.yaml:2: profilse is not known here: profiles was meant?\n"


def test_in_a_process_of_its_own_the_exit_code_and_the_line_reach_the_shell(file: str) -> None:
    def run(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "app", "config", *args]
        return programs.run(
            command, capture_output=True, text=True, env=environment(**more), check=False, timeout=50
        )

    assert run("check", LLM_CONFIG_FILE=file).returncode == 0
    Path(file).write_text("fallback: gemini\n")
    assert run("check", LLM_CONFIG_FILE=file).returncode == 1
    Path(file).write_text("\nnobody: 1\n")
    done = run("check", LLM_CONFIG_FILE=file)
    assert (done.returncode, done.stdout) == (2, "")
    assert "signalbox.yaml:2: nobody is not known here" in done.stderr


def test_explain_takes_the_profile_of_the_stage(signalbox: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_STAGE_PROFILES", "plan=advanced")
    assert json.loads(signalbox("explain", "Hi", "--stage", "plan", "--json").out)["profile"] == "advanced"
    assert json.loads(signalbox("explain", "Hi", "--stage", "other", "--json").out)["profile"] == "balanced"
