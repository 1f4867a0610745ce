"""`signalbox replay`: the request of a recorded run once more, on another candidate, and both answers side by side."""

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson
from app.cli.output import emit, emit_json, emit_table, harmless

if TYPE_CHECKING:
    from app.cli.replaying import Difference, Repetition, Side

_ROWS = ("run", "candidate", "status", "finish_reason", "error", "tokens", "cost USD", "ms", "text")


def replay(
    run_id: Annotated[
        str, typer.Argument(metavar="RUN_ID", help="The id, or a beginning of it that is unique.")
    ],
    *,
    on: Annotated[str, typer.Option(metavar="PROVIDER:MODEL", help="Ask this candidate, and no other.")],
    as_json: AsJson = False,
) -> None:
    """Send the request of a recorded run to another candidate, and compare the two answers.

    It is sent, and may cost. It becomes a run of its own in the same workspace and stage, with `repeats` in its
    metadata; it takes neither the key of the old run nor an answer from the cache. What was asked under `local_only`
    stays local. Of texts that differ, [-these words-] are the recorded ones and {+these+} the new ones.

    Example: signalbox replay 01a1fbdb-50b6 --on ollama:llama3.2
    """
    from app.cli.replaying import repeated  # noqa: PLC0415  # --help is fast

    done = asyncio.run(repeated(run_id, on))
    if as_json:
        emit_json(_document(done))
    else:
        _show(done)


def _document(done: "Repetition") -> dict[str, Any]:
    """Return both sides as JSON values; costs are numbers, as everywhere."""
    return {
        "original": asdict(done.original),
        "replay": asdict(done.replay),
        "same_text": done.original.text == done.replay.text,
        "differences": [
            {"original": each.original, "replay": each.replay}
            for each in done.differences
            if not each.is_same
        ],
    }


def _show(done: "Repetition") -> None:
    sides = (done.original, done.replay)
    cells = [_cells(side) for side in sides]
    rows = [(name, *values) for name, *values in zip(_ROWS, *cells, strict=True) if values != [None, None]]
    emit_table(("", "recorded", "replay"), rows)
    if done.original.text is None:
        emit("\nThere is no recorded answer to compare with.")
    elif done.original.text == done.replay.text:
        emit("\nThe texts are the same.")
    else:
        emit(f"\nDifferences\n{harmless(''.join(map(_marked, done.differences)))}")


def _cells(side: "Side") -> list[object]:
    from app.cli.run_view import dollars, rounded, tokens  # noqa: PLC0415  # --help is fast

    counts = {"input_tokens": side.input_tokens, "output_tokens": side.output_tokens}
    return [
        *(side.run, side.candidate, side.status, side.finish_reason, side.error),
        *(tokens(counts), dollars(side.cost_usd), rounded(side.latency_ms), side.text),
    ]


def _marked(each: "Difference") -> str:
    """Return words as `git diff --word-diff` shows them."""
    if each.is_same:
        return each.original
    old, new = each.original.rstrip(), each.replay.rstrip()
    space = (each.replay or each.original)[len(new or old) :]
    return (f"[-{old}-]" if old else "") + (f"{{+{new}+}}" if new else "") + space
