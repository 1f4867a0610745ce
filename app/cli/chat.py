"""`signalbox chat`: one prompt in, the model's words out."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, RequestOptions, with_request_options
from app.cli.output import emit_answer, emit_json, note, read_text

if TYPE_CHECKING:
    from app.llm.types import LLMResponse

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr where the answer came from.")]


@with_request_options
def chat(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The question; `-` reads it from stdin.")],
    *,
    asked: RequestOptions,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Ask a model and print its answer.

    Example: signalbox chat "Why is the sky blue?" --profile fast --verbose
    """
    from app.cli.calls import answer  # noqa: PLC0415  # --help is fast

    response = asyncio.run(answer(asked, read_text("-") if prompt == "-" else prompt))
    if as_json:
        emit_json(document(response))
    else:
        emit_answer(response.text)
    remark(response, verbose=verbose)


def document(response: "LLMResponse") -> dict[str, Any]:
    """Return the answer with its provenance as JSON values."""
    return {"text": response.text, **response.model_dump(mode="json")}


def remark(response: "LLMResponse", *, verbose: bool) -> None:
    """Say on stderr what the text alone does not show: that it is cut or unrecorded, and, if asked, its provenance."""
    if response.finish_reason in {"length", "content_filter"}:
        note(f"signalbox: the answer is incomplete ({response.finish_reason})")
    if verbose:
        used = response.original_usage
        facts = (
            f"{response.provider}:{response.model}",
            response.served_from,
            f"run {response.run_id}" + ("" if response.persisted else " (not recorded)"),
            f"{len(response.attempts)} attempt{'' if len(response.attempts) == 1 else 's'}",
            f"{response.latency_ms:.0f} ms",
            f"{_count(used.input_tokens)} + {_count(used.output_tokens)} tokens",
        )
        note(" | ".join(facts))


def _count(tokens: int | None) -> str:
    return "?" if tokens is None else str(tokens)
