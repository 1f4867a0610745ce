"""Payload bytes as versioned JSON, so that an answer written today can be read by the version of next year."""

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Protocol

import orjson
import zstandard
from pydantic import Field, JsonValue, TypeAdapter
from pydantic_core import from_json

from app.llm.deltas import Parts
from app.llm.errors import LLMLedgerUnavailable
from app.llm.messages import Message, Part, TextPart, ThinkingPart, ToolCallPart
from app.llm.ports import Effect, StoredAnswer
from app.llm.pricing import FREE
from app.llm.types import (
    NO_USAGE,
    UNKNOWN_USAGE,
    FinishReason,
    LLMProvider,
    LLMRequest,
    LLMResponse,
    ServedFrom,
    TokenUsage,
)

VERSION = 1
RAW = 0
"""Codec number of bytes of JSON as they are."""
ZSTD = 1
"""Codec number of a zstd frame of that JSON."""
AES_GCM, AES_GCM_ZSTD = 2, 3
"""Codec numbers of nonce and ciphertext (`cipher.Cipher`), of JSON or of its zstd frame."""
ENCRYPTED = frozenset({AES_GCM, AES_GCM_ZSTD})

SMALLEST_FRAME = 128
"""Bytes below which a frame saves nothing that is worth its time."""
LARGEST_FRAME = 64 * 2**20
"""Bytes that a frame holds at most; larger texts are stored as they are, so that no frame can be a bomb."""
_LEVEL = 1
_zstd = threading.local()
"""One compressor and one decompressor a thread: making one takes longer than using it."""

_TIMES_IN_MEMORY, _MORE_IN_MEMORY = 2, 3000
"""About how many bytes an answer takes as objects, for each byte of its JSON, and beside that."""

_ENCODER = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))
"""Not orjson: it writes no ASCII, refuses lone surrogates, and reads large integers as floats."""
_RESULT = b'{"v":%d,"result":' % VERSION
"""How the results of effects begin, and no answer does."""
_NO_EXPONENT = (1e-4, 1e16)
"""Floats in this range are written alike by orjson and the standard library."""
_UNSAID = {
    name: field.get_default(call_default_factory=True) if field.default_factory else field.default
    for name, field in LLMRequest.model_fields.items()
}
"""What a request need not say: the default itself where it has one, not a copy, for it is compared by identity first."""
_SELDOM_COUNTED = ("cached_input_tokens", "cache_write_tokens", "cache_write_1h_tokens")
"""Fields of `TokenUsage` that are written only where there is a count."""
_PLAIN = frozenset(_UNSAID) - {"tools", "tool_choice", "response_format", "variants", "constraints"}
"""Fields that JSON writes as they are; `messages` if all they hold is text."""
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
    """Bytes as they are, or compressed where that makes them smaller, under their SHA-256."""

    def address(self, data: bytes, *, workspace_id: str) -> str:  # noqa: ARG002  # the protocol's signature
        """Return the SHA-256."""
        return hashlib.sha256(data).hexdigest()

    def encode(self, data: bytes, *, workspace_id: str, address: str) -> tuple[int, bytes]:  # noqa: ARG002  # as above
        """Return a zstd frame if it is smaller, else the bytes."""
        if SMALLEST_FRAME <= len(data) <= LARGEST_FRAME:
            frame = _compressor().compress(data)
            if len(frame) < len(data):
                return ZSTD, frame
        return RAW, data

    def decode(self, codec: int, data: bytes, *, workspace_id: str, address: str) -> bytes:  # noqa: ARG002  # as above
        """Return the bytes.

        Raises:
            Unreadable: They are encrypted, damaged, or of a newer version.
        """
        if codec == RAW:
            return data
        if codec == ZSTD:
            return _decompressed(data)
        raise Unreadable(
            "it is encrypted: set LLM_PAYLOAD_KEY"
            if codec in ENCRYPTED
            else f"codec {codec} is of a newer version"
        )


PLAIN = Plain()


def _compressor() -> zstandard.ZstdCompressor:
    if not hasattr(_zstd, "compressor"):
        _zstd.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    compressor: zstandard.ZstdCompressor = _zstd.compressor
    return compressor


def _decompressed(frame: bytes) -> bytes:
    """Return what a frame holds; its header says how much that is, and is believed only up to the limit."""
    if not hasattr(_zstd, "decompressor"):
        _zstd.decompressor = zstandard.ZstdDecompressor()
    try:
        if not 0 <= zstandard.frame_content_size(frame) <= LARGEST_FRAME:
            raise Unreadable("it is no compressed text of ours")
        data: bytes = _zstd.decompressor.decompress(frame, max_output_size=LARGEST_FRAME)
    except zstandard.ZstdError:
        raise Unreadable("its compressed bytes are damaged") from None
    return data


def to_json(value: object) -> str:
    """Return JSON of ASCII characters only: no database refuses its NULs or surrogates."""
    return _ENCODER.encode(value)


def object_json(value: Mapping[str, JsonValue]) -> str:
    """Return `to_json` of an object, which is mostly empty."""
    body = dict(value)
    return _to_json_bytes(body, alike=_is_written_alike(body)).decode() if body else "{}"


def encode_request(request: LLMRequest | Effect) -> bytes:
    """Return what the caller wrote, without what it left unsaid; it reads back as an equal request."""
    if isinstance(request, Effect):
        effect = {"name": request.name, "arguments": request.arguments}
        return to_json({"v": VERSION, "effect": effect}).encode()
    fields = vars(request)
    said = [name for name, usual in _UNSAID.items() if fields[name] is not usual and fields[name] != usual]
    turns = _turns(request.messages) if _PLAIN.issuperset(said) else None
    if turns is None:
        body = request.model_dump(mode="json", include=set(said))
        return to_json({"v": VERSION, "request": body}).encode()
    body = {name: fields[name] for name in said}
    body["messages"] = turns
    alike = all(_is_written_alike(value) for name, value in body.items() if name != "messages")
    return _to_json_bytes({"v": VERSION, "request": body}, alike=alike)


def decode_request(data: bytes) -> LLMRequest | Effect | None:
    """Return what `encode_request` was given; None if another version wrote it, or nobody."""
    with suppress(ValueError, KeyError, TypeError):
        body = _loaded(data)
        if body["v"] == VERSION:
            effect = body.get("effect")
            return Effect(**effect) if effect else LLMRequest.model_validate_json(to_json(body["request"]))
    return None


def encode_result(result: str) -> bytes:
    """Return what an effect returned, which is JSON already."""
    return _RESULT + result.encode() + b"}"


def encode_response(response: LLMResponse) -> bytes:
    """Return the answer itself; provenance lives in the row's columns."""
    return _encoded(
        response.parts, response.original_usage, response.finish_reason, response.provider, response.model
    )


def encode_partial(parts: Parts, provider: LLMProvider, model: str) -> bytes:
    """Return what had arrived of an answer; without a reason why it ended, nobody takes it for one."""
    return _encoded(parts, UNKNOWN_USAGE, None, provider, model)


def _encoded(
    parts: Parts, usage: TokenUsage, finish: FinishReason | None, provider: LLMProvider, model: str
) -> bytes:
    texts = _texts(parts)
    counts = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    for name in _SELDOM_COUNTED:
        if (count := getattr(usage, name)) is not None:
            counts[name] = count
    body = {
        "v": VERSION,
        "parts": _PARTS.dump_python(parts, mode="json") if texts is None else texts,
        "finish_reason": finish.value if finish else None,
        "usage": counts,
        "provider": provider.value,
        "model": model,
    }
    return _to_json_bytes(body, alike=texts is not None and _is_written_alike(counts))


def _to_json_bytes(body: dict[str, Any], *, alike: bool) -> bytes:
    """Return `to_json`, by orjson in a tenth of the time where that writes the same."""
    if alike:
        with suppress(TypeError):  # a lone surrogate, an integer of more than 64 bits
            data = orjson.dumps(body)
            if data.isascii() and b"\x7f" not in data:
                return data
    return to_json(body).encode()


def _is_written_alike(value: object) -> bool:
    """Return whether orjson writes a value as the standard library does, but for characters that are escaped."""
    if value is None or isinstance(value, str | int):
        return True
    if isinstance(value, float):
        return value == 0 or _NO_EXPONENT[0] <= abs(value) < _NO_EXPONENT[1]
    if isinstance(value, dict):
        return all(map(_is_written_alike, value.values()))
    return isinstance(value, list | tuple) and all(map(_is_written_alike, value))


def _turns(messages: Sequence[Message]) -> list[JsonValue] | None:
    """Return messages of texts alone as pydantic would dump them, in a third of its time; None for others."""
    turns: list[JsonValue] = []
    for message in messages:
        content = _texts(message.content)
        if content is None:
            return None
        turns.append({"role": message.role, "content": content})
    return turns


def _texts(parts: Sequence[Part]) -> list[JsonValue] | None:
    """Likewise of the parts of one message."""
    texts: list[JsonValue] = [{"type": "text", "text": part.text} for part in parts if type(part) is TextPart]
    return texts if len(texts) == len(parts) else None


def decode_response(
    data: bytes, *, run_id: str, route: Sequence[dict[str, JsonValue]], served_from: ServedFrom
) -> LLMResponse:
    """Return the stored answer as it is served again: it consumes nothing.

    Raises:
        LLMLedgerUnavailable: The bytes were written by a newer version, or damaged.
    """
    try:
        body = _loaded(data)
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
            cost_usd=FREE,
        )
    except (ValueError, KeyError, TypeError):  # their texts quote the answer
        fault = LLMLedgerUnavailable(
            f"the stored answer of run {run_id} cannot be read by this version", run_id=run_id
        )
    raise fault


def _loaded(text: bytes | str) -> Any:
    """Return `json.loads`, in a third of its time unless there are lone surrogates in it."""
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)


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


def stored_answer(
    row: Mapping[str, Any], served_from: ServedFrom, codec: Codec, *, left_s: float | None = None
) -> StoredAnswer:
    """Return a row that was read with its payload; `response` is None when the bytes were not kept.

    `left_s` is for how many seconds it may be served.

    Raises:
        LLMLedgerUnavailable: They were kept, and cannot be read.
    """
    run_id = str(row["id"])
    response, result, size = None, None, 0
    if row["bytes"] is not None:
        data = opened(row, codec, run_id=run_id)
        size = _TIMES_IN_MEMORY * len(data) + _MORE_IN_MEMORY
        if data.startswith(_RESULT):
            result = data[len(_RESULT) : -1].decode()
        else:
            route = _loaded(row["route"])
            response = decode_response(data, run_id=run_id, route=route, served_from=served_from)
    return StoredAnswer(
        run_id=run_id,
        candidate_sha256=row["candidate_sha256"],
        request_sha256=row["request_sha256"],
        response=response,
        result=result,
        left_s=left_s,
        size_bytes=size,
    )
