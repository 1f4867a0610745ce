"""Tables of the documentation, made from the code: `python -m app.docs` writes them, `--check` names the stale ones.

`.env.example` is written whole; in the documents only what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import typer.core
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from typer.main import get_command

from app.cli import NAME, cli
from app.llm.errors import LLMCancelled, LLMError, LLMProviderError
from app.llm.fields import Fields
from app.llm.fields.meanings import meanings
from app.llm.metric_names import LEDGER_METRICS, METRICS, Metric
from app.llm.schemas import SchemaDialect
from app.llm.schemas.features import FEATURES, outcome
from app.llm.settings import PREFIX, LLMSettings

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = "docs/*.md"
ENV_EXAMPLE = ".env.example"
HELP_COLUMNS = 100

_COLUMNS = {
    SchemaDialect.OLLAMA_FORMAT: "Ollama, answer",
    SchemaDialect.OLLAMA_TOOLS: "Ollama, tool",
    SchemaDialect.GEMINI_JSON_SCHEMA: "Gemini, answer",
    SchemaDialect.GEMINI_TOOLS: "Gemini, tool",
}
"""What `GEMINI_OPENAPI` says is what a tool of Gemini's says."""

_MAY_BE_PAID = (LLMProviderError, LLMCancelled)
"""Errors that are raised with `possibly_paid` where a request may have reached the provider."""

_SECTION = re.compile(r"^    # -- (.+)$", re.MULTILINE)
_FIELD = re.compile(r"^    (\w+): ", re.MULTILINE)


def main() -> int:
    """Write the tables, or with `--check` name the files whose tables are stale; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m app.docs", description=inspect.getdoc(main))
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is stale")
    check = parser.parse_args().check
    stale = stale_files(ROOT)
    for path, text in stale.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        sys.stderr.write(
            f"{path.relative_to(ROOT)}: {'stale, run `python -m app.docs`' if check else 'written'}\n"
        )
    return int(check and bool(stale))


def stale_files(root: Path) -> dict[Path, str]:
    """Return the files under `root` that are not as they should be, each with the text that it should have.

    Raises:
        ValueError: A document opens a block and does not close it.
    """
    wanted = {root / ENV_EXAMPLE: env_example()}
    for path in sorted(root.glob(DOCUMENTS)):
        wanted[path] = with_blocks(path.read_text(encoding="utf-8"))
    return {path: text for path, text in wanted.items() if not path.is_file() or path.read_text() != text}


def with_blocks(text: str, blocks: Mapping[str, Callable[[], str]] | None = None) -> str:
    """Return a document with its generated blocks renewed, those of BLOCKS by default; one without markers stays as it is.

    Raises:
        ValueError: A block is opened and not closed.
    """
    for name, make in (BLOCKS if blocks is None else blocks).items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in text:
            continue
        before, rest = text.split(begin, 1)
        if end not in rest:
            raise ValueError(f"{begin} has no {end}")
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end, 1)[1]}"
    return text


def env_example() -> str:
    """Return every setting with its meaning and default, commented out, under the sections of the settings file."""
    meaning = meanings(LLMSettings)
    lines = ["# Copy to .env and take away the `# ` of what you change. Every value shown is the default."]
    for section, names in _sections().items():
        lines += ["", f"# -- {section}"]
        for name in names:
            field = LLMSettings.model_fields[name]
            lines += ["", f"# {meaning[name]}", f"# {_variable(name)}={_default(field)}"]
    return "\n".join(lines) + "\n"


def settings_table() -> str:
    """Return the settings as a Markdown table; `_S`, `_MS`, `_TOKENS` in a name are units."""
    meaning = meanings(LLMSettings)
    rows = [
        (f"`{_variable(name)}`", _code(_default(LLMSettings.model_fields[name])), meaning[name])
        for names in _sections().values()
        for name in names
    ]
    return _table(("Variable", "Default", "Meaning"), rows)


def error_table() -> str:
    """Return the error classes as a Markdown table, in the order of their tree."""
    rows = [
        (
            f"`{kind.__name__}`",
            f"`{kind.code}`",
            _yes(kind.retryable),
            _yes(kind.fallback),
            "may say so"
            if issubclass(kind, _MAY_BE_PAID) and not kind.possibly_paid
            else _yes(kind.possibly_paid),
            (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " "),
        )
        for kind in _descendants(LLMError)
    ]
    return _table(("Class", "Code", "Retryable", "Fallback", "Possibly paid", "Meaning"), rows)


def cli_help() -> str:
    """Return the help of the program, then of each command, folded, as on a terminal of 100 columns."""
    (_, overview), *commands = _help(get_command(cli), NAME, None)
    folded = (
        f"<details><summary><code>{path}</code></summary>\n\n{_block(text)}\n\n</details>"
        for path, text in commands
    )
    return "\n\n".join([_block(overview), *folded])


def schema_table() -> str:
    """Return what becomes of each part of a model, provider by provider, as a Markdown table."""
    rows = [(feature, *(outcome(feature, dialect) for dialect in _COLUMNS)) for feature in FEATURES]
    return _table(("A field of", *_COLUMNS.values()), rows)


def metrics_table() -> str:
    """Return the metrics of a service as a Markdown table."""
    return _metrics(METRICS)


def ledger_metrics_table() -> str:
    """Return the metrics that `signalbox metrics` serves as a Markdown table."""
    return _metrics(LEDGER_METRICS)


BLOCKS: Mapping[str, Callable[[], str]] = {
    "settings": settings_table,
    "errors": error_table,
    "cli": cli_help,
    "schemas": schema_table,
    "metrics": metrics_table,
    "ledger-metrics": ledger_metrics_table,
}
"""What each pair of markers holds."""


def _metrics(metrics: Mapping[str, Metric]) -> str:
    rows = [
        (f"`{name}`", metric.kind.rpartition(" ")[2], ", ".join(metric.labels), metric.meaning)
        for name, metric in metrics.items()
    ]
    return _table(("Metric", "Kind", "Labels", "Meaning"), rows)


def _sections() -> dict[str, list[str]]:
    """Return the fields of the settings by the section comment above them, each class's behind those of its heirs."""
    rooms = [kind for kind in LLMSettings.__mro__ if issubclass(kind, Fields)]
    parts = [part for room in rooms for part in _SECTION.split(inspect.getsource(room))[1:]]
    return {
        title: [name for name in _FIELD.findall(body) if name in LLMSettings.model_fields]
        for title, body in zip(parts[::2], parts[1::2], strict=True)
    }


def _variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def _default(field: FieldInfo) -> str:
    """Return a default as it is written in `.env`; empty for none. What stands in the code is no secret."""
    value: Any = field.default
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if value is None or value == {}:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value).removesuffix(".0")


def _descendants(kind: type[LLMError]) -> Iterator[type[LLMError]]:
    for child in kind.__subclasses__():
        if child.__module__ == kind.__module__:
            yield child
            yield from _descendants(child)


def _help(
    command: Any, name: str, parent: typer.Context | None
) -> Iterator[tuple[str, str]]:  # typer's commands
    context = typer.Context(command, info_name=name, parent=parent, terminal_width=HELP_COLUMNS)
    yield context.command_path, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    for child_name, child in getattr(command, "commands", {}).items():
        yield from _help(child, child_name, context)


def _block(text: str) -> str:
    return f"```text\n{text}\n```"


def _yes(flag: bool) -> str:  # noqa: FBT001  # a cell
    return "yes" if flag else "no"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
