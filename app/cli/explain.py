"""`signalbox explain`: which candidates a call would use and why, without making it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.faults import FAILED
from app.cli.options import AsJson, RequestOptions, with_request_options
from app.cli.output import emit_facts, emit_json, emit_table, note, read_text

if TYPE_CHECKING:
    from app.llm.candidates import Needs, RouteDecision, RouteEntry

_CAPS = {
    "tools": "supports_tools",
    "forced tool": "supports_forced_tool_choice",
    "json": "supports_json",
    "schema": "supports_json_schema",
    "vision": "supports_vision",
    "documents": "supports_documents",
    "audio": "supports_audio",
    "video": "supports_video",
}
_NEEDS = {
    "tools": "tools",
    "forced_tool_choice": "a forced tool",
    "json_object": "JSON",
    "json_schema": "a JSON schema",
    "vision": "vision",
    "documents": "documents",
    "audio": "audio",
    "video": "video",
}


@with_request_options
def explain(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The question; `-` reads it from stdin.")],
    *,
    asked: RequestOptions,
    schema: Annotated[
        str | None, typer.Option(metavar="FILE", help="JSON Schema that the answer must fit.")
    ] = None,
    image: Annotated[str | None, typer.Option(metavar="FILE", help="PNG, JPEG, WebP or GIF to show.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which candidates a call would use, and why.

    Nobody is called, and no database is needed. `assumed` caps are the provider's defaults: nothing more is known
    of that model. Exit code 1 if no candidate is left.

    Example: signalbox explain "What is on it?" --image scan.png --profile advanced
    """
    from app.cli.calls import route  # noqa: PLC0415  # --help is fast
    from app.cli.schemas import load_schema  # noqa: PLC0415
    from app.llm.router import no_candidate  # noqa: PLC0415

    form = load_schema(schema).form if schema else None
    decision = route(asked, read_text("-") if prompt == "-" else prompt, form=form, image=image)
    if as_json:
        emit_json(_document(decision))
    else:
        _show(decision)
    if not decision.kept:
        note(f"signalbox: {no_candidate(decision).message}")
        raise typer.Exit(FAILED)


def _show(decision: "RouteDecision") -> None:
    emit_facts({"profile": decision.profile, "needs": _needs(decision.needs)})
    columns = ("candidate", "verdict", "reason", "local", *_CAPS, "context", "caps")
    emit_table(columns, [_row(entry) for entry in decision.entries])


def _row(entry: "RouteEntry") -> list[object]:
    candidate, caps = entry.candidate, entry.candidate.caps
    detail = ", ".join(f"{name} {value}" for name, value in entry.detail.items())
    return [
        candidate.name,
        "kept" if entry.kept else "excluded",
        f"{entry.reason} ({detail})" if detail else entry.reason,
        _yes(candidate.local),
        *(_yes(getattr(caps, field)) for field in _CAPS.values()),
        caps.max_context_tokens,
        "assumed" if caps.assumed else "known",
    ]


def _needs(needs: "Needs") -> str:
    room = (
        f"about {needs.input_tokens_estimate} tokens in, {needs.output_tokens_reserved} kept for the answer"
    )
    return ", ".join([room, *(word for field, word in _NEEDS.items() if getattr(needs, field))])


def _yes(flag: bool) -> str:  # noqa: FBT001  # a cell
    return "yes" if flag else "no"


def _document(decision: "RouteDecision") -> dict[str, Any]:
    entries = [entry.model_dump(mode="json") for entry in decision.entries]
    return {
        "profile": decision.profile,
        "needs": decision.needs.model_dump(),
        "candidates": [
            {
                "name": entry.candidate.name,
                **dumped.pop("candidate"),
                **dumped,
                "needs": decision.needs_of[entry.candidate.provider].model_dump(),
            }
            for entry, dumped in zip(decision.entries, entries, strict=True)
        ],
    }
