"""Fingerprints: equal exactly when nothing differs that can change an answer, in every process, for years."""

import json
import math
from collections.abc import Mapping
from enum import StrEnum
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import orjson

from app.llm.errors import LLMInvalidRequest
from app.llm.messages import (
    FilePart,
    Frozen,
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolChoiceTool,
    ToolResultPart,
    ToolSpec,
)
from app.llm.types import LLMConstraints, LLMProvider, LLMRequest, RequestVariant

FINGERPRINT_VERSION = 1
"""Hashed into every value below; raise it whenever the canonical form changes."""

DEFAULT_PORTS: Mapping[str, int] = {"http": 80, "https": 443}


class Kind(StrEnum):
    """What a field is to the fingerprints: `content` is in both, `intent` in `request_sha256` only."""

    CONTENT = "content"
    INTENT = "intent"
    EXCLUDED = "excluded"
    CALL_ID = "call_id"
    """Content, but only as far as it ties a result to its call: numbered by first appearance."""
    DIGEST = "digest"
    """Content of bytes: their SHA-256 stands for them."""


def _content(*names: str, **others: Kind) -> Mapping[str, Kind]:
    return {**dict.fromkeys(names, Kind.CONTENT), **others}


FIELDS: Mapping[type[Frozen], Mapping[str, Kind]] = {
    LLMRequest: _content(
        *("messages", "temperature", "top_p", "max_output_tokens", "stop", "seed", "thinking"),
        *("tools", "tool_choice", "response_format", "variants"),
        **dict.fromkeys(("profile", "model", "constraints", "asked_sha256"), Kind.INTENT),
        **dict.fromkeys(("idempotency_key", "cache", "timeout_s"), Kind.EXCLUDED),
        **dict.fromkeys(("force_new_execution", "metadata"), Kind.EXCLUDED),
    ),
    RequestVariant: _content("messages", "tools", "tool_choice", "response_format"),
    Message: _content("role", "content"),
    TextPart: _content("type", "text"),
    ImagePart: _content("type", "media_type", data=Kind.DIGEST),
    FilePart: _content("type", "media_type", data=Kind.DIGEST),
    ToolCallPart: _content("type", "name", "arguments", id=Kind.CALL_ID, signature=Kind.EXCLUDED),
    ToolResultPart: _content("type", "name", "content", id=Kind.CALL_ID),
    ThinkingPart: _content("type", "text", signature=Kind.EXCLUDED),
    ToolSpec: _content("name", "description", "parameters", "strict"),
    ToolChoiceTool: _content("name"),
    ResponseFormat: _content("type", "name", "json_schema", "strict"),
    LLMConstraints: _content("local_only", "allow_fallback", "providers"),
}
"""Every field of every shape of a request, classified; a field that is missing here fails a test."""

_CONTENT = {
    shape: tuple(name for name, kind in kinds.items() if kind is Kind.CONTENT)
    for shape, kinds in FIELDS.items()
}
_STAND_INS = {
    shape: tuple((name, kind) for name, kind in kinds.items() if kind in {Kind.CALL_ID, Kind.DIGEST})
    for shape, kinds in FIELDS.items()
}
"""Fields for which something else is hashed."""

_AS_IS = frozenset({str, int, bool, type(None)})
_TEXTS_ONLY = frozenset({TextPart, ToolChoiceTool})
"""Shapes whose every field is content and text: what they hold is their canonical form already."""


def prompt_sha256(request: LLMRequest) -> str:
    """Return the hash of all that can change what a given model says, as 64 hex digits.

    The order of messages, tools and stop words counts; the order of object keys does not, nor 1 against 1.0,
    nor how tool-call ids are spelled. None ("not said") differs from every value.

    Raises:
        LLMInvalidRequest: A number is NaN or infinite, which JSON cannot say.
    """
    held, call_ids = vars(request), dict[str, int]()
    said = [name for name, usual in _USUAL.items() if held[name] is not usual and held[name] != usual]
    return content_sha256({name: _canonical(held[name], call_ids) for name in said})


def content_sha256(said: dict[str, Any]) -> str:
    """Return the `prompt_sha256` of a request of whose `canonical` form this is the content; what is unsaid may lack."""
    return _digest("prompt", _UNSAID | said)


def request_sha256(request: LLMRequest, *, prompt: str | None = None) -> str:
    """Return the hash of the intent: the content, and which candidates may serve it; or what was asked, if it says so.

    Args:
        request: What the caller wants.
        prompt: Its `prompt_sha256`, where it is known already.

    Raises:
        LLMInvalidRequest: As in `prompt_sha256`.
    """
    if request.asked_sha256 is not None:
        return _digest("request", {"asked": request.asked_sha256})
    asked = request.constraints
    return _digest(
        "request",
        {
            "prompt": prompt or prompt_sha256(request),
            "profile": request.profile,
            "model": request.model,
            "constraints": _NO_LIMITS if asked is _ANYWHERE else _limits(asked),
        },
    )


def effect_sha256(name: str, arguments: Mapping[str, Any]) -> str:
    """Return the hash of an effect: its name and its arguments, which are JSON. 64 hex digits.

    Raises:
        LLMInvalidRequest: A number is NaN or infinite.
    """
    return _digest("effect", {"name": name, "arguments": _canonical(arguments, {})})


def canonical(request: LLMRequest) -> dict[str, Any]:
    """Return what the hashes are made of, as plain JSON: every field of content and intent, in one order."""
    call_ids = dict[str, int]()
    hashed = [name for name, kind in FIELDS[LLMRequest].items() if kind is not Kind.EXCLUDED]
    body = {name: _canonical(getattr(request, name), call_ids) for name in hashed}
    return {**body, "constraints": _limits(request.constraints)}


def canonical_content(request: LLMRequest) -> dict[str, Any]:
    """Return that part of `canonical` which `prompt_sha256` is made of, without what the request leaves unsaid."""
    whole = canonical(request)
    return {
        name: whole[name]
        for name in _CONTENT[LLMRequest]
        if name not in _UNSAID or whole[name] != _UNSAID[name]
    }


def candidate_sha256(*, provider: LLMProvider, model: str, api_base: str, options: Mapping[str, Any]) -> str:
    """Return the identity of a candidate: who answers, where, and under which options of ours. 64 hex digits.

    The host's case, a default port and a trailing slash of `api_base` do not matter; its path does. `options` are
    JSON values that change answers, such as `num_ctx`.

    Raises:
        LLMInvalidRequest: An option is NaN or infinite.
    """
    base = urlsplit(api_base)
    port = base.port or DEFAULT_PORTS.get(base.scheme)
    where = [base.scheme, base.hostname, port, base.path.rstrip("/")]  # urlsplit lower-cases the first two
    return _digest(
        "candidate",
        {"provider": provider, "model": model, "base": where, "options": _canonical(options, {})},
    )


def flight_slot(workspace_id: str, prompt_sha256: str, candidate_sha256: str) -> str:
    """Return what equal calls of one workspace share while one of them is in flight, as 64 hex digits."""
    return _digest("flight", [workspace_id, prompt_sha256, candidate_sha256])


def json_bytes(value: object) -> bytes:
    """Return JSON with sorted keys; orjson where it can, else (integers over 64 bits, lone surrogates) the slow way."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode("utf-8", "surrogatepass")


def _digest(what: str, body: object) -> str:
    return sha256(json_bytes([what, FINGERPRINT_VERSION, body])).hexdigest()


def _canonical(value: Any, call_ids: dict[str, int]) -> Any:
    """Return `value` as plain JSON; `call_ids` numbers the tool-call ids that were met so far."""
    kind = type(value)
    if kind in _AS_IS:
        return value
    if kind in _CONTENT:
        return _canonical_shape(value, call_ids)
    if isinstance(value, list | tuple):
        return [_canonical(item, call_ids) for item in value]
    if isinstance(value, Mapping):  # a variant replaces the messages: its ids are numbered afresh
        return {str(key): _canonical(item, {}) for key, item in value.items()}
    return _number(value) if isinstance(value, float) else value


def _canonical_shape(shape: Frozen, call_ids: dict[str, int]) -> dict[str, Any]:
    held, kind = vars(shape), type(shape)
    if kind in _TEXTS_ONLY:
        return held
    if kind is Message:
        return {
            "role": held["role"],
            "content": [_canonical_shape(part, call_ids) for part in held["content"]],
        }
    body = {
        name: value if type(value := held[name]) in _AS_IS else _canonical(value, call_ids)
        for name in _CONTENT[kind]
    }
    for name, how in _STAND_INS[kind]:
        value = held[name]
        if how is Kind.CALL_ID:
            body[name] = call_ids.setdefault(value, len(call_ids))
        else:
            body[name] = sha256(value).hexdigest()
    return body


def _limits(asked: LLMConstraints) -> dict[str, Any]:
    providers = (
        None if asked.providers is None else sorted(set(asked.providers))
    )  # a set: its order says nothing
    return {**_canonical(asked, {}), "providers": providers}


def _number(value: float) -> float | int:
    if not math.isfinite(value):
        raise LLMInvalidRequest(f"a request cannot hold the number {value}: JSON has no word for it")
    return int(value) if value.is_integer() else value


_USUAL = {
    name: field.get_default(call_default_factory=True)
    for name, field in LLMRequest.model_fields.items()
    if name in _CONTENT[LLMRequest]
}
"""What a request need not say. Its values are compared, not `model_fields_set`: a default of a subclass is sent, too."""
_UNSAID = {
    name: _canonical(usual, {})
    for name, usual in _USUAL.items()
    if not LLMRequest.model_fields[name].is_required()
}
_ANYWHERE = LLMRequest.model_fields["constraints"].default
_NO_LIMITS = _limits(_ANYWHERE)
"""The canonical form of the above."""
