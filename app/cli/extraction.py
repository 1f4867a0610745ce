"""What `extract` does: ask for JSON, and take none that does not fit the schema."""

from dataclasses import dataclass
from typing import Any

import typer

from app.bootstrap import build_llm_service
from app.cli.calls import context_of, request_of
from app.cli.options import RequestOptions
from app.cli.schemas import Schema
from app.llm.errors import LLMInvalidOutput
from app.llm.settings import load_settings
from app.llm.types import LLMResponse

INSTRUCTION = "Extract from the user's text what the JSON schema asks for. Answer with that JSON alone, and invent nothing."


class ExtractionFailed(typer.TyperException):
    """No answer fits the schema."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """Data that fits its schema, and the answer that it was read from."""

    data: Any  # JSON
    response: LLMResponse


async def extract(asked: RequestOptions, schema: Schema, text: str) -> Extracted:
    """Return the data of a text.

    Raises:
        UsageFault: An option is wrong.
        ExtractionFailed: No candidate's answers fit, or they were cut off.
        LLMError: The call failed.
    """
    settings = load_settings()
    request = request_of(asked, text, system=INSTRUCTION, form=schema.form)
    try:
        async with build_llm_service(settings) as service:
            response = await service.chat(request, context=context_of(asked, settings), check=schema)
    except LLMInvalidOutput as error:
        raise _failed(error) from None
    return Extracted(schema.read(response.text), response)


def _failed(error: LLMInvalidOutput) -> ExtractionFailed:
    last = error.rejected[-1]
    return ExtractionFailed(
        f"no answer fits the schema, of {len(error.rejected)}; the last one, of {last.provider}:{last.model}: "
        f"{'; '.join(last.faults)} (run {error.run_id})"
    )
