"""`signalbox config`: what is in force and where it came from, and whether it can work."""

from typing import Annotated

import typer

from app.cli.faults import FAILED
from app.cli.options import AsJson
from app.cli.output import emit, emit_json, emit_table, note

Config = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="A routing file, YAML or TOML. Default: LLM_CONFIG_FILE."),
]

group = typer.Typer(help="Look at the settings: what is in force, where it came from, what is wrong.")


@group.command()
def show(*, config: Config = None, as_json: AsJson = False) -> None:
    """Show every setting that is in force, and where its value came from.

    Secrets are masked; what a routing file takes from a variable is shown as it is written.

    Example: signalbox config show --config routing.yaml
    """
    from app.cli.configuring import in_force  # noqa: PLC0415  # --help is fast

    settings = in_force(config)
    if as_json:
        emit_json([each.document() for each in settings])
    else:
        emit_table(("setting", "value", "from"), [(each.name, each.value, each.where) for each in settings])


@group.command()
def check(*, config: Config = None, as_json: AsJson = False) -> None:
    """Check the settings; nobody is asked, and no database is opened.

    A profile or a fallback that nobody can serve is a fault. Exit code 1 for faults, 2 for a setting that cannot be
    read, with its variable or its line in the file.

    Example: signalbox config check --config routing.yaml
    """
    from app.cli.configuring import checked  # noqa: PLC0415  # --help is fast

    found = checked(config)
    if as_json:
        emit_json({"faults": found.faults, "warnings": found.warnings})
    else:
        for warning in found.warnings:
            note(f"warning: {warning}")
        for fault in found.faults:
            note(f"fault: {fault}")
    if found.faults:
        raise typer.Exit(FAILED)
    if not as_json:
        emit(f"no faults: {found.summary}")
