"""`signalbox doctor`: one screen that says what works here, what does not, and what to do about it."""

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.config import Config
from app.cli.faults import FAILED, UsageFault
from app.cli.options import AsJson
from app.cli.output import emit, emit_json, emit_table, status_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.diagnosis.findings import Finding

MARKS = {"ok": "ok", "warning": "warn", "fault": "FAIL", "skipped": "-"}
"""What stands before each line: to be read without colours, too."""


def doctor(
    *,
    config: Config = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For each look at something.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Look at settings, database, files, providers, models and LiteLLM, and say what to do.

    No model is called, nothing is paid, and nothing is left behind; LiteLLM is loaded, which takes some seconds. With
    LLM_LOCAL_ONLY only local providers are asked. Exit code 1 if something does not work; warnings are none.

    Example: signalbox doctor --json
    """
    if not timeout > 0:  # NaN neither
        raise UsageFault("--timeout: more than 0 seconds")
    with status_line("looking at everything"):
        findings = asyncio.run(_examined(config, timeout))
    red = [each for each in findings if each.state == "fault"]
    if as_json:
        emit_json({"healthy": not red, "findings": [_document(each) for each in findings]})
    else:
        _show(findings)
    if red:
        raise typer.Exit(FAILED)


async def _examined(config: str | None, limit_s: float) -> "list[Finding]":
    from app.core.clock import SystemClock  # noqa: PLC0415  # --help is fast
    from app.diagnosis.doctor import examined  # noqa: PLC0415

    given = {"config_file": config} if config else {}
    return await examined(given, limit_s=limit_s, clock=SystemClock())


def _show(findings: "Sequence[Finding]") -> None:
    rows: list[tuple[str, str, str]] = []
    for each in findings:
        rows.append((MARKS[each.state], each.subject, each.said))
        if each.remedy is not None:
            rows.append(("", "", f"-> {each.remedy}"))
    emit_table(("", "what", "how it is"), rows)
    counts = Counter(each.state.value for each in findings)
    words = {
        "ok": "working",
        "warning": "to be looked at",
        "fault": "not working",
        "skipped": "not looked at",
    }
    emit("\n" + ", ".join(f"{counts[state]} {word}" for state, word in words.items() if counts[state]))


def _document(finding: "Finding") -> dict[str, str | None]:
    return {
        "subject": finding.subject,
        "state": finding.state.value,
        "said": finding.said,
        "remedy": finding.remedy,
    }
