"""The command line: it translates words into calls and outcomes into words, and decides nothing."""

import io
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from typing import Annotated

import typer
from typer.main import get_command

from app.cli import (
    batch,
    budgets,
    cassette,
    chat,
    config,
    costs,
    doctor,
    explain,
    export,
    extract,
    metrics,
    migrate,
    models,
    prune,
    pull,
    replay,
    report,
    runs,
    simulate,
    warmup,
)
from app.cli.faults import INTERRUPTED, told
from app.cli.options import AsJson
from app.cli.output import emit, emit_json, note

NAME = "signalbox"

cli = typer.Typer(name=NAME, rich_markup_mode=None)
cli.command()(chat.chat)
cli.command()(extract.extract)
cli.command()(batch.batch)
cli.command()(explain.explain)
cli.add_typer(runs.group, name="runs")
cli.command()(replay.replay)
cli.command()(export.export)
cli.add_typer(config.group, name="config")
cli.command()(report.report)
cli.add_typer(costs.group, name="costs")
cli.command()(budgets.budgets)
cli.command()(metrics.metrics)
cli.command()(migrate.migrate)
cli.command()(prune.prune)
cli.command()(simulate.simulate)
cli.command()(doctor.doctor)
cli.command()(models.models)
cli.command()(pull.pull)
cli.command()(warmup.warmup)
cli.add_typer(cassette.group, name="cassette")


@dataclass(slots=True)
class Switches:
    """What the options before the command say."""

    debug: bool = False


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 1: the call failed, or nothing was found. 2: the command line or a setting is wrong. 130: Ctrl-C.
    141: the reader of stdout went away.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a model may say what the terminal cannot show
    words = list(sys.argv[1:] if args is None else args)
    switches = Switches()
    try:
        code = get_command(cli).main(words or ["--help"], prog_name=NAME, standalone_mode=False, obj=switches)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the last floor: whatever it is becomes one line
        if switches.debug:
            traceback.print_exception(error)
        line, code = told(error)
        note(f"{NAME}: {line}")
    return code or 0


@cli.callback()
def global_options(
    context: typer.Context,
    *,
    log: Annotated[
        bool, typer.Option("--log", help="Show events on stderr, as LLM_LOG_FORMAT says.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Route calls to language models, and look at the ledger that records them."""
    context.ensure_object(Switches).debug = debug
    context.with_resource(_events(shown=log))


@cli.command()
def version(*, as_json: AsJson = False) -> None:
    """Print the version.

    Example: signalbox version --json
    """
    number = installed_version(NAME)
    if as_json:
        emit_json({"version": number})
    else:
        emit(f"{NAME} {number}")


@contextmanager
def _events(*, shown: bool) -> Iterator[None]:
    """Send the package's events to stderr, or nowhere: what matters of them is said by the command itself."""
    logger = logging.getLogger(NAME)
    handler = logging.StreamHandler() if shown else logging.NullHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if shown else logging.CRITICAL)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
