"""The tables of the documentation are made from the code; nobody has to remember them."""

import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from app import docs
from app.llm import errors
from app.llm.fields.meanings import meanings
from app.llm.schemas.features import FEATURES
from app.llm.settings import LLMSettings, load_settings


def test_the_committed_files_are_current() -> None:
    assert [path.name for path in docs.stale_files(docs.ROOT)] == []


def test_the_example_lists_every_setting_once_under_its_section_with_its_meaning() -> None:
    text = docs.env_example()
    names = [
        line[2:].partition("=")[0] for line in text.splitlines() if line.startswith("# LLM_") and "=" in line
    ]
    assert sorted(names) == sorted(f"LLM_{name.upper()}" for name in LLMSettings.model_fields)
    assert [line for line in text.splitlines() if line.startswith("# --")] == [
        "# -- routing", "# -- providers", "# -- limits", "# -- log", "# -- routing file", "# -- learning",
        "# -- Ollama", "# -- Gemini", "# -- OpenAI", "# -- Anthropic", "# -- Groq", "# -- budgets", "# -- rates",
        "# -- ledger", "# -- telemetry", "# -- record and replay",
    ]  # fmt: skip
    assert all(f"# {meaning}\n" in text for meaning in meanings(LLMSettings).values())


def test_every_line_of_the_example_is_commented_out() -> None:
    assert all(line.startswith("#") or not line for line in docs.env_example().splitlines())


def test_the_example_s_values_are_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncommenting every line that has a value changes nothing."""
    values = [
        line[2:] for line in docs.env_example().splitlines() if line.startswith("# LLM_") and "=" in line
    ]
    (tmp_path / ".env").write_text("\n".join(line for line in values if not line.endswith("=")))
    monkeypatch.chdir(tmp_path)
    assert load_settings() == LLMSettings(_env_file=None)


def test_no_setting_that_names_a_credential_has_a_value() -> None:
    secrets = [
        name for name, field in LLMSettings.model_fields.items() if "SecretStr" in str(field.annotation)
    ]
    for name in set(secrets) - {"database_url"}:
        assert f"# LLM_{name.upper()}=\n" in docs.env_example()
    assert isinstance(LLMSettings.model_fields["database_url"].default, SecretStr)


def test_the_table_of_schemas_says_what_happens_to_each_feature() -> None:
    rows = [line.split(" | ") for line in docs.schema_table().splitlines()[2:]]
    assert len(rows) == len(FEATURES)
    assert {len(row) for row in rows} == {5} | {len(row) for row in rows if "\\|" in row[0]}
    told = {row[0].removeprefix("| "): row[1:] for row in rows}
    assert told["plain pattern, `^[A-Z]{2}$`"] == [
        "as it is",
        "without `pattern`",
        "without `pattern`",
        "as it is |",
    ]


def test_every_error_class_has_its_row() -> None:
    table = docs.error_table()
    classes = [
        kind for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.LLMError) and kind is not errors.LLMError
    ]  # fmt: skip
    assert all(f"| `{kind.__name__}` | `{kind.code}` |" in table for kind in classes)
    assert len(table.splitlines()) == len(classes) + 2
    assert "| `LLMTimeout` | `timeout` | yes | yes | may say so |" in table


def test_the_help_of_every_command_is_there_whatever_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = docs.cli_help()
    monkeypatch.setenv("COLUMNS", "40")
    assert docs.cli_help() == wide
    for command in (
        "chat",
        "extract",
        "explain",
        "runs list",
        "runs show",
        "runs release",
        "migrate",
        "version",
    ):
        assert f"<code>signalbox {command}</code>" in wide


def test_blocks_are_renewed_and_the_rest_stays() -> None:
    text = "# Title\n<!-- errors:begin -->\nold\n<!-- errors:end -->\nend | of | file\n"
    renewed = docs.with_blocks(text)
    assert renewed.startswith("# Title\n<!-- errors:begin -->\n| Class |")
    assert renewed.endswith("|\n<!-- errors:end -->\nend | of | file\n")
    assert docs.with_blocks(renewed) == renewed
    assert docs.with_blocks("no markers") == "no markers"


def test_a_block_that_is_not_closed_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- cli:begin --> has no <!-- cli:end -->"):
        docs.with_blocks("<!-- cli:begin -->\n")


def test_check_names_what_is_stale_and_writing_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "SETTINGS.md").write_text("<!-- settings:begin -->\n<!-- settings:end -->\n")
    monkeypatch.setattr(docs, "ROOT", tmp_path)

    def run(*args: str) -> int:
        monkeypatch.setattr(sys, "argv", ["docs", *args])
        return docs.main()

    assert run("--check") == 1
    told = capsys.readouterr().err
    assert ".env.example: stale" in told
    assert "docs/SETTINGS.md: stale" in told
    assert not (tmp_path / ".env.example").exists()
    assert (run(), run("--check")) == (0, 0)
