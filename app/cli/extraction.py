"""What `extract` does: ask, judge the answer by the schema, and ask once more with the faults named."""

from dataclasses import dataclass
from typing import Any

import typer

from app.bootstrap import build_llm_service
from app.cli.calls import context_of, request_of
from app.cli.faults import UsageFault
from app.cli.options import RequestOptions
from app.cli.schemas import BadAnswer, Schema
from app.llm.messages import Message
from app.llm.settings import load_settings
from app.llm.types import MAX_KEY_CHARS, FinishReason, LLMRequest, LLMResponse

INSTRUCTION = "Extract from the user's text what the JSON schema asks for. Answer with that JSON alone, and invent nothing."
SECOND_KEY = "/2"
"""Ends the key of the second question, which is another request."""


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
        ExtractionFailed: Two answers did not fit, or one was cut off.
        LLMError: A call failed.
    """
    settings = load_settings()
    if asked.key and len(asked.key) > MAX_KEY_CHARS - len(SECOND_KEY):
        raise UsageFault(f"--key: at most {MAX_KEY_CHARS - len(SECOND_KEY)} characters")
    request = request_of(asked, text, system=INSTRUCTION, form=schema.form)
    context = context_of(asked, settings)
    async with build_llm_service(settings) as service:
        response = await service.chat(request, context=context)
        try:
            return Extracted(schema.parsed(response.text), response)
        except BadAnswer as fault:
            _check_complete(response)
            request = _again(request, response, fault)
        response = await service.chat(request, context=context)
    try:
        return Extracted(schema.parsed(response.text), response)
    except BadAnswer as fault:
        _check_complete(response)
        raise ExtractionFailed(
            f"two answers of {response.provider}:{response.model} did not fit the schema; the last one: {fault} "
            f"(run {response.run_id})"
        ) from None


def _check_complete(response: LLMResponse) -> None:
    if response.finish_reason is FinishReason.LENGTH:
        raise ExtractionFailed(
            f"the answer of {response.provider}:{response.model} was cut off: raise --max-output-tokens, or send "
            f"less text (run {response.run_id})"
        )


def _again(request: LLMRequest, response: LLMResponse, fault: BadAnswer) -> LLMRequest:
    complaint = f"That does not fit the schema: {fault}. Answer again, with the corrected JSON alone."
    messages = (*request.messages, Message.assistant(response.text), Message.user(complaint))
    key = request.idempotency_key and request.idempotency_key + SECOND_KEY
    return request.model_copy(update={"messages": messages, "idempotency_key": key})
