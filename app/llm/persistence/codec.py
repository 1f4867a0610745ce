"""Payload bytes as versioned JSON, so that an answer written today can be read by the version of next year."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

from pydantic import Field, JsonValue, TypeAdapter

from app.llm.errors import LLMLedgerUnavailable
from app.llm.messages import TextPart, ThinkingPart, ToolCallPart
from app.llm.ports import StoredAnswer
from app.llm.types import NO_USAGE, FinishReason, LLMRequest, LLMResponse, ServedFrom, TokenUsage

VERSION = 1
RAW = 0
"""Codec number of bytes of JSON as they are."""
AES_GCM = 2
"""Codec number of nonce and ciphertext (`cipher.Cipher`); 1 is kept for zstd."""

_PARTS: TypeAdapter[tuple[TextPart | ToolCallPart | ThinkingPart, ...]] = TypeAdapter(
    tuple[Annotated[TextPart | ToolCallPart | ThinkingPart, Field(discriminator="type")], ...]
)


class Codec(Protocol):
    """How payload bytes are addressed and kept; one object for whoever writes or reads them."""

    def address(self, data: bytes, *, workspace_id: str) -> str:
        """Return 64 hex digits that stand for these bytes within a workspace."""
        ...

    def encode(self, data: bytes, *, workspace_id: str, address: str) -> tuple[int, bytes]:
        """Return the codec number and the bytes that are stored."""
        ...

    def decode(self, codec: int, data: bytes, *, workspace_id: str, address: str) -> bytes:
        """Return what was encoded.

        Raises:
            Unreadable: Not by this codec, or not with these keys.
        """
        ...


class Unreadable(ValueError):  # says what is so, as the error tree does
    """A payload that is stored but cannot be opened here; the text says why."""


class Plain:
    """Bytes as they are, under their SHA-256."""

    def address(self, data: bytes, *, workspace_id: str) -> str:  # noqa: ARG002  # the protocol's signature
        """Return the SHA-256."""
        return hashlib.sha256(data).hexdigest()

    def encode(self, data: bytes, *, workspace_id: str, address: str) -> tuple[int, bytes]:  # noqa: ARG002  # as above
        """Return the bytes."""
        return RAW, data

    def decode(self, codec: int, data: bytes, *, workspace_id: str, address: str) -> bytes:  # noqa: ARG002  # as above
        """Return the bytes.

        Raises:
            Unreadable: They are encrypted, or of a newer version.
        """
        if codec == RAW:
            return data
        raise Unreadable(
            "it is encrypted: set LLM_PAYLOAD_KEY"
            if codec == AES_GCM
            else f"codec {codec} is of a newer version"
        )


PLAIN = Plain()


_ASCII = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))


def to_json(value: object) -> str:
    """Return JSON of ASCII characters only: no database refuses its NULs or surrogates."""
    return _ASCII.encode(value)


_UNSAID = {
    name: field.get_default(call_default_factory=True) for name, field in LLMRequest.model_fields.items()
}


def encode_request(request: LLMRequest) -> bytes:
    """Return what the caller wrote, without what it left unsaid; it reads back as an equal request."""
    fields = vars(request)
    unsaid = {name for name, usual in _UNSAID.items() if fields[name] is usual or fields[name] == usual}
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


def opened(payload: Mapping[str, Any], codec: Codec, *, run_id: str) -> bytes:
    """Return the bytes of a payload row, or of a row joined with one.

    Raises:
        LLMLedgerUnavailable: They cannot be read with this LLM_PAYLOAD_KEY, or by this version.
    """
    where = {"workspace_id": payload["workspace_id"], "address": payload["sha256"]}
    try:
        return codec.decode(payload["codec"], payload["bytes"], **where)
    except Unreadable as error:
        reason = str(error)
    raise LLMLedgerUnavailable(f"the stored answer of run {run_id} cannot be read: {reason}", run_id=run_id)


def stored_answer(row: Mapping[str, Any], served_from: ServedFrom, codec: Codec) -> StoredAnswer:
    """Return a row that was read with its payload; `response` is None when the bytes were not kept.

    Raises:
        LLMLedgerUnavailable: They were kept, and cannot be read.
    """
    run_id = str(row["id"])
    response = None
    if row["bytes"] is not None:
        response = decode_response(
            opened(row, codec, run_id=run_id),
            run_id=run_id,
            route=json.loads(row["route"]),
            served_from=served_from,
        )
    return StoredAnswer(
        run_id=run_id,
        candidate_sha256=row["candidate_sha256"],
        request_sha256=row["request_sha256"],
        response=response,
    )
