import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run


def test_each_candidate_is_kept_or_excluded_with_its_reason_and_no_database_is_made(signalbox: Run) -> None:
    done = signalbox("explain", "Hello")
    rows = [line.split() for line in done.out.splitlines()]
    assert done.code == 0
    assert ["ollama:llama3.2", "kept", "listed", "yes"] in [row[:4] for row in rows]
    assert ["gemini:gemini-2.5-flash", "excluded", "no_credentials", "no"] in [row[:4] for row in rows]
    assert not list(Path().glob("*.db"))


def test_json_holds_needs_caps_and_identity(signalbox: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_OLLAMA_MODEL", "nobody-knows-it")
    explained = json.loads(signalbox("explain", "Hello", "--json", "--max-output-tokens", "50").out)
    assert explained["needs"]["output_tokens_reserved"] == 50
    assert explained["needs"]["input_tokens_estimate"] > 0
    first = explained["candidates"][0]
    assert (first["name"], first["kept"], first["caps"]["assumed"]) == ("ollama:nobody-knows-it", True, True)
    assert len(first["identity"]) == 64


def test_a_schema_and_an_image_are_needs(signalbox: Run) -> None:
    Path("schema.json").write_text('{"type": "object"}')
    Path("photo.png").write_bytes(b"\x89PNG")
    done = signalbox("explain", "What is this?", "--schema", "schema.json", "--image", "photo.png")
    assert "a JSON schema, vision" in done.out
    assert "no_vision" in done.out


def test_a_context_that_is_too_small_shows_the_figures(signalbox: Run) -> None:
    done = signalbox("explain", "-", stdin="word " * 10_000)
    assert done.code == 1
    assert "context_too_small (estimate 16671, reserved 1024, limit 8192)" in done.out


def test_nobody_left_is_said_and_fails(signalbox: Run) -> None:
    done = signalbox("explain", "Hello", "--local-only", "--model", "gemini:gemini-2.5-pro")
    assert done.code == 1
    assert "gemini:gemini-2.5-pro" in done.out
    assert done.err.startswith("signalbox: no candidate of profile balanced can serve this request: ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [("none.png", "cannot read none.png"), ("notes.txt", "--image: a PNG, JPEG, WebP or GIF file is needed")],
)
def test_an_image_that_cannot_be_used_is_a_usage_fault(signalbox: Run, name: str, said: str) -> None:
    Path("notes.txt").write_text("no image")
    done = signalbox("explain", "Hello", "--image", name)
    assert done.code == 2
    assert said in done.told


def test_colour_is_for_terminals_and_no_color_is_honoured(
    signalbox: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b[" not in signalbox("explain", "Hello").out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in signalbox("explain", "Hello").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in signalbox("explain", "Hello").out
