"""Every failure as one line and an exit code, because nobody who types a command wants a traceback."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from app.llm.errors import LLMError

FAILED, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes: the call failed or nothing was found; the command line or a setting is wrong; Ctrl-C."""


class UsageFault(typer.TyperException):
    """The command line, or a file that it names, is wrong."""

    exit_code = USAGE


class NotFound(typer.TyperException):
    """There is no such thing, or not in the state that the command needs."""

    exit_code = FAILED


def told(error: Exception) -> tuple[str, int]:
    """Return what to say about an error, in one line, and the exit code."""
    if isinstance(error, typer.TyperException):
        return _one_line(_usage(error)), error.exit_code
    from app.llm.errors import LLMError, LLMInvalidRequest, LLMSettingsError  # noqa: PLC0415  # a typo is told fast

    if isinstance(error, LLMError):
        usage = isinstance(error, LLMSettingsError | LLMInvalidRequest)
        return _one_line(error.message) + _aside(error), USAGE if usage else FAILED
    if isinstance(error, OSError) and error.strerror:
        return _one_line(f"{error.filename or 'output'}: {error.strerror}"), FAILED
    return _one_line(f"unexpected {type(error).__name__}: {error} (see it with `signalbox --debug`)"), FAILED


def _usage(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)  # of a mistake that the parser found
    if context is None:
        return error.format_message()
    said = error.format_message().removesuffix(".").replace(": Value error, ", ": ")
    return f"{said} (see `{context.command_path} --help`)"


def _aside(error: "LLMError") -> str:
    """Return the facts that the message does not name: the run, and that money may be gone."""
    run_id = error.run_id if error.run_id and error.run_id not in error.message else None
    facts = [f"run {run_id}"] if run_id else []
    if error.possibly_paid:
        facts.append("possibly paid")
    return f" ({', '.join(facts)})" if facts else ""


def _one_line(text: str) -> str:
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(text.split())
    )
