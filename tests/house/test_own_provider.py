"""The example of a provider of one's own: built as a package, found by its entry point, asked over a real socket."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from app.llm.testing import Reply, StubOpenAI
from tests.support import programs
from tests.support.ledger import ROOT

PACKAGE = ROOT / "examples" / "own_provider"
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
ASK = """
import asyncio, json
from app.bootstrap import build_llm_service
from app.llm import LLMConstraints, LLMRequest, Message, load_settings

async def main():
    settings = load_settings()
    async with build_llm_service(settings) as llm:
        asked = LLMRequest(messages=(Message.user("Hello"),), idempotency_key="k1",
                           constraints=LLMConstraints(providers=("lighthouse",)))
        live, replayed = [await llm.chat(asked) for _ in range(2)]
        print(json.dumps({
            "text": live.text, "provider": live.provider, "model": live.model, "route": list(live.route),
            "again": [replayed.served_from, replayed.provider],
            "secret": "beam-key" in repr(settings), "redacted": "beam-key" in settings.secrets(),
        }))

asyncio.run(main())
"""
BROKEN = {
    "taken": ("ollama = x:y", "there is a provider of this name already"),
    "no module": ("beam = nowhere_at_all:Beam", "No module named 'nowhere_at_all'"),
    "no provider": ("beam = json:JSONDecoder", "it has no `default_model`"),
    "no name": ("Beam! = json:JSONDecoder", "is not a valid LLMProvider"),
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as an installer would unpack it."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)],
        cwd=PACKAGE,
        capture_output=True,
        text=True,
        check=False,
        timeout=55,
    )
    assert built.returncode == 0, built.stderr
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder / "site")
    return folder / "site"


def run(code: str, folder: Path, *path: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("LLM_")},
        "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))),
        "LLM_DEFAULT_WORKSPACE": "w1",
        **variables,
    }
    return programs.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=55,
    )


def test_a_provider_of_ones_own_is_listed_asked_and_replayed(installed: Path, tmp_path: Path):
    with StubOpenAI(models=("beam-large",), api_key="beam-key") as stub:
        stub.script(Reply.text("Ahoy."))
        done = run(
            ASK, tmp_path, installed,
            LLM_LIGHTHOUSE_API_BASE=stub.base_url, LLM_LIGHTHOUSE_API_KEY="beam-key",
            LLM_PROFILE_BALANCED="lighthouse:beam-large,lighthouse,ollama",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert stub.sends == 1
    told: dict[str, Any] = json.loads(done.stdout)
    route = told.pop("route")
    assert told == {
        "text": "Ahoy.", "provider": "lighthouse", "model": "beam-large", "again": ["replay", "lighthouse"],
        "secret": False, "redacted": True,
    }  # fmt: skip
    assert [(each["provider"], each["model"], each["kept"]) for each in route[:2]] == [
        ("lighthouse", "beam-large", True),
        ("lighthouse", "beam-small", True),
    ]


def test_without_its_key_it_is_no_candidate_and_without_its_package_no_provider(
    installed: Path, tmp_path: Path
):
    listed = {"LLM_PROFILE_BALANCED": "lighthouse"}
    keyless = run(ASK, tmp_path, installed, **listed)
    assert "no credentials (set LLM_LIGHTHOUSE_API_KEY)" in keyless.stderr
    unknown = run(ASK, tmp_path, **listed)
    assert "'lighthouse' is not `provider:model` or a provider of ollama, gemini" in unknown.stderr


def test_a_wrong_value_of_its_settings_is_named_and_its_key_masked(installed: Path, tmp_path: Path):
    done = run(ASK, tmp_path, installed, LLM_LIGHTHOUSE_API_BASE="beam", LLM_LIGHTHOUSE_API_KEY="beam-key")
    assert "LLM_LIGHTHOUSE_API_BASE='beam': must be a URL" in done.stderr
    assert "beam-key" not in done.stderr
    misspelt = run(ASK, tmp_path, installed, LLM_LIGHTHOUSE_API_KEYS="beam-key")
    assert "LLM_LIGHTHOUSE_API_KEYS is no setting: LLM_LIGHTHOUSE_API_KEY was meant?" in misspelt.stderr


@pytest.mark.parametrize(("line", "why"), BROKEN.values(), ids=BROKEN)
def test_a_package_that_registers_nonsense_is_refused_by_its_name(tmp_path: Path, line: str, why: str):
    about = tmp_path / "site" / "beam-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: beam\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[signalbox.providers]\n{line}\n")
    done = run("from app.llm import load_settings; load_settings()", tmp_path, tmp_path / "site")
    assert "LLMSettingsError" in done.stderr
    assert "of beam" in done.stderr
    assert why in done.stderr


def test_a_class_whose_name_is_not_that_of_its_entry_point_is_refused(installed: Path, tmp_path: Path):
    """Its settings would have one name, and it would read those of the other."""
    about = tmp_path / "site" / "beam-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: beam\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[signalbox.providers]\nbeam = lighthouse:Lighthouse\n")
    done = run("from app.llm import load_settings; load_settings()", tmp_path, tmp_path / "site", installed)
    assert "the provider 'beam' of beam (LLM_BEAM_...) cannot be used" in done.stderr
    assert "its class has the name 'lighthouse'" in done.stderr
