"""How each candidate is asked for JSON of a schema: by the strongest means that it has. Pure."""

from typing import Any

from app.llm.candidates import Candidate
from app.llm.fingerprint import json_bytes
from app.llm.messages import Message, ResponseFormat, TextPart
from app.llm.types import LLMProvider, LLMRequest

INSTRUCTION = "Answer with one JSON object that fits the JSON Schema below, and with nothing else: no prose, no code fence."
_NOT_TOLD = frozenset({LLMProvider.OLLAMA})
"""Their grammar holds a model to a schema that it has not seen; small models do better if they have."""


def as_able(request: LLMRequest, candidate: Candidate) -> LLMRequest:
    """Return the request with its adaptive format, if it has one, as the candidate is able to take it."""
    form = request.response_format
    if form is None or form.type != "adaptive" or form.json_schema is None:
        return request
    if candidate.caps.supports_json_schema:
        native = ResponseFormat.of_schema(form.json_schema, name=form.name, strict=form.strict)
        told = candidate.provider in _NOT_TOLD
        return request.model_copy(
            update={"response_format": native, **(_told(request, form.json_schema) if told else {})}
        )
    mode = ResponseFormat(type="json_object") if candidate.caps.supports_json else None
    return request.model_copy(update={"response_format": mode, **_told(request, form.json_schema)})


def _told(request: LLMRequest, schema: dict[str, Any]) -> dict[str, tuple[Message, ...]]:
    """Return the messages with the schema at the end of the system message."""
    told = f"{INSTRUCTION}\n{json_bytes(schema).decode()}"
    first, rest = request.messages[0], request.messages[1:]
    if first.role != "system":
        return {"messages": (Message.system(told), *request.messages)}
    extended = first.model_copy(update={"content": (*first.content, TextPart(text=f"\n\n{told}"))})
    return {"messages": (extended, *rest)}
