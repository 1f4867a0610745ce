"""Payload bytes as versioned JSON, so that an answer written today can be read by the version of next year."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, JsonValue, TypeAdapter

from app.llm.errors import LLMLedgerUnavailable
from app.llm.messages import TextPart, ThinkingPart, ToolCallPart
from app.llm.ports import StoredAnswer
from app.llm.types import NO_USAGE, FinishReason, LLMRequest, LLMResponse, ServedFrom, TokenUsage

VERSION = 1
RAW = 0
"""Codec number of bytes of JSON as they are."""

_PARTS: TypeAdapter[tuple[TextPart | ToolCallPart | ThinkingPart, ...]] = TypeAdapter(
    tuple[Annotated[TextPart | ToolCallPart | ThinkingPart, Field(discriminator="type")], ...]
)


def sha256(data: bytes) -> str:
    """Return the address of a payload."""
    return hashlib.sha256(data).hexdigest()


def to_json(value: object) -> str:
    """Return JSON of ASCII characters only: no database refuses its NULs or surrogates."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def encode_request(request: LLMRequest) -> bytes:
    """Return what the caller wrote, without what it left unsaid; it reads back as an equal request."""
    unsaid = {
        name
        for name, field in LLMRequest.model_fields.items()
        if getattr(request, name) == field.get_default(call_default_factory=True)
    }
    return to_json({"v": VERSION, "request": request.model_dump(mode="json", exclude=unsaid)}).encode()


def encode_response(response: LLMResponse) -> bytes:
    """Return the answer itself; provenance lives in the row's columns."""
    return to_json(
        {
            "v": VERSION,
            "parts": _PARTS.dump_python(response.parts, mode="json"),
            "finish_reason": response.finish_reason.value,
            "usage": response.original_usage.model_dump(),
            "provider": response.provider.value,
            "model": response.model,
        }
    ).encode()


def decode_response(
    data: bytes, *, run_id: str, route: Sequence[dict[str, JsonValue]], served_from: ServedFrom
) -> LLMResponse:
    """Return the stored answer as it is served again: it consumes nothing.

    Raises:
        LLMLedgerUnavailable: The bytes were written by a newer version, or damaged.
    """
    try:
        body = json.loads(data)
        if body["v"] != VERSION:
            raise ValueError(body["v"])  # noqa: TRY301  # one way out for all that cannot be read
        return LLMResponse(
            parts=_PARTS.validate_python(body["parts"]),
            finish_reason=FinishReason(body["finish_reason"]),
            usage=NO_USAGE,
            original_usage=TokenUsage.model_validate(body["usage"]),
            provider=body["provider"],
            model=body["model"],
            run_id=run_id,
            served_from=served_from,
            route=tuple(route),
            cost_usd=0.0,
        )
    except (ValueError, KeyError, TypeError):  # their texts quote the answer
        fault = LLMLedgerUnavailable(
            f"the stored answer of run {run_id} cannot be read by this version", run_id=run_id
        )
    raise fault


def stored_answer(row: Mapping[str, Any], served_from: ServedFrom) -> StoredAnswer:
    """Return a row that was read with its payload; `response` is None when the bytes were not kept."""
    run_id = str(row["id"])
    response = None
    if row["bytes"] is not None:
        response = decode_response(
            row["bytes"], run_id=run_id, route=json.loads(row["route"]), served_from=served_from
        )
    return StoredAnswer(
        run_id=run_id,
        candidate_sha256=row["candidate_sha256"],
        request_sha256=row["request_sha256"],
        response=response,
    )
