"""What goes in and what comes out: one set of shapes for the rooms below and the callers above."""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Literal, Self

import orjson
from pydantic import (
    BaseModel,
    Field,
    JsonValue,
    PlainSerializer,
    SkipValidation,
    field_validator,
    model_validator,
)

from app.llm.messages import (
    Frozen,
    Message,
    ResponseFormat,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolChoice,
    ToolChoiceTool,
    ToolSpec,
)

MAX_METADATA_BYTES = 4096
MAX_KEY_CHARS = 255
NOT_METADATA = {
    **dict.fromkeys(
        ("api_base", "base_url"), "set LLM_OLLAMA_API_BASE, LLM_GEMINI_API_BASE or another provider's"
    ),
    "api_key": "set LLM_OLLAMA_API_KEY, LLM_GEMINI_API_KEY or another provider's; metadata is stored as it is",
    "model": "set LLMRequest.model",
}
"""Names that other libraries take from a call's metadata, and where they are said here."""
# A model's name becomes part of a URL; LiteLLM asks OLLAMA_API_BASE, or localhost, about one that starts like its own.
_NAME = r"^[a-z][a-z0-9_]*:[^\s:/?#@%\\][^\s?#@%\\]*$"
_OWN_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_ascii_json = json.JSONEncoder(allow_nan=False).encode
_NO_NAME = re.compile(r"\.\.|//|/\.?(?:/|$)|^ollama:ollama(?:_chat)?/")


class LLMProvider(StrEnum):
    """Who serves a model. The members come along; any other name like theirs is a provider of a user's own."""

    OLLAMA = "ollama"
    GEMINI = "gemini"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GROQ = "groq"

    @classmethod
    def _missing_(cls, value: object) -> "LLMProvider | None":
        if not isinstance(value, str) or not _OWN_NAME.fullmatch(value):
            return None
        own = str.__new__(cls, value)
        own._name_, own._value_ = value.upper(), value
        return own


class WireFormat(StrEnum):
    """Whose JSON a provider speaks; many speak OpenAI's."""

    OLLAMA = "ollama"
    GEMINI = "gemini"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class LLMProfile(StrEnum):
    """The caller's intent; the settings say which candidates serve it."""

    FAST = "fast"
    BALANCED = "balanced"
    ADVANCED = "advanced"


class FinishReason(StrEnum):
    """Why a model stopped."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class ServedFrom(StrEnum):
    """Where an answer came from: a provider, the run of the same key, the content cache, or the cassette of a test."""

    LIVE = "live"
    REPLAY = "replay"
    CACHE = "cache"
    CASSETTE = "cassette"
    """What a provider said when it was recorded, with its usage and cost of then."""


class CacheMode(StrEnum):
    """`use` reads and feeds the cache, `refresh` only feeds it, `bypass` does neither."""

    USE = "use"
    REFRESH = "refresh"
    BYPASS = "bypass"


class LLMConstraints(Frozen):
    """Limits on the choice of candidates. None leaves the decision to the settings."""

    local_only: bool | None = None
    allow_fallback: bool | None = None
    providers: tuple[LLMProvider, ...] | None = None


class RequestVariant(Frozen):
    """What replaces the same fields of a request for candidates of one provider (other output mode, for instance)."""

    messages: tuple[Message, ...] = Field(min_length=1)
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice | None = None
    response_format: ResponseFormat | None = None


class LLMRequest(Frozen):
    """What the caller wants. None means "not said": the candidate's default applies, and the fingerprint keeps None."""

    messages: tuple[Message, ...] = Field(min_length=1)
    profile: LLMProfile | None = None
    model: str | None = Field(default=None, pattern=_NAME, max_length=200)
    """Pins one candidate as `provider:model`, split at the first colon."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_output_tokens: int | None = Field(default=None, ge=1)
    stop: tuple[str, ...] | None = None
    seed: int | None = Field(default=None, ge=-(2**31), lt=2**31)
    thinking: bool | Literal["low", "medium", "high"] | None = None
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice | None = None
    response_format: ResponseFormat | None = None
    variants: Mapping[LLMProvider, RequestVariant] = Field(default_factory=dict)
    constraints: LLMConstraints = LLMConstraints()
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=MAX_KEY_CHARS)
    asked_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Under a key, what makes two requests the same, where the caller can tell it better than the fields do: of an agent,
    what it asked, whoever was to answer then and is now. None: content, profile, model and constraints make them so."""
    cache: CacheMode = CacheMode.USE
    timeout_s: float | None = Field(default=None, gt=0, le=86_400)
    """Seconds for the whole call: queueing, every send, every wait."""
    force_new_execution: bool = False
    """Declare the owner of this key dead, or its answer void, and execute again."""
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    """`workspace_id`, `pipeline_run_id`, `stage` are read from here; the rest is stored, 4 KB of JSON at most."""

    @field_validator("idempotency_key")
    @classmethod
    def _is_printable(cls, value: str | None) -> str | None:
        return value if value is None else printable(value, "idempotency_key")

    @field_validator("model")
    @classmethod
    def _model_leads_nowhere_else(cls, value: str | None) -> str | None:
        return value if value is None else checked_model(value)

    @field_validator("metadata")
    @classmethod
    def _metadata_is_small(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in NOT_METADATA.keys() & value:
            raise ValueError(
                f"metadata cannot hold {name!r}, which directs nothing there: {NOT_METADATA[name]}"
            )
        if not value or _is_clearly_small(value):
            return value
        try:
            size = len(_ascii_json(value))
        except ValueError as error:
            raise ValueError(f"metadata must be JSON: {error}") from None
        if size > MAX_METADATA_BYTES:
            raise ValueError(f"metadata is {size} bytes of JSON; the limit is {MAX_METADATA_BYTES}")
        return value

    @model_validator(mode="after")
    def _text_can_be_sent(self) -> Self:
        if _has_lone_surrogate(map(vars(self).__getitem__, self.model_fields_set)):
            raise ValueError(
                "a text holds half of a surrogate pair, which no provider can be sent: "
                "decode it with errors='replace'"
            )
        return self

    @model_validator(mode="after")
    def _tools_are_consistent(self) -> Self:
        if not self.tools and self.tool_choice is None:
            return self
        names = [tool.name for tool in self.tools]
        if len(set(names)) != len(names):
            raise ValueError("two tools have the same name")
        if isinstance(self.tool_choice, ToolChoiceTool) and self.tool_choice.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.name!r}, which is not among the tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice is 'required' but there are no tools")
        return self

    def as_sent_to(self, provider: LLMProvider) -> "LLMRequest":
        """Return the request as candidates of `provider` get it: with its variant applied, if it has one."""
        variant = self.variants.get(provider)
        if variant is None:
            return self
        return self.model_copy(
            update={**{name: getattr(variant, name) for name in RequestVariant.model_fields}, "variants": {}}
        )


def _is_clearly_small(value: dict[str, JsonValue]) -> bool:
    """Return whether it has room even if each byte became six, as in ASCII; a null may be a NaN, which JSON has not."""
    try:
        text = orjson.dumps(value)
    except TypeError:
        return False
    return len(text) * 6 <= MAX_METADATA_BYTES and b"null" not in text


def checked_model(name: str) -> str:
    """Return a candidate's name unchanged: `provider:model`, of which no part can lead anywhere else.

    Raises:
        ValueError: It could.
    """
    if not re.search(_NAME, name) or _NO_NAME.search(name):
        raise ValueError(
            "a model is named provider:model; its name has no '..', '.' or empty part between its slashes, no "
            "`ollama/` in front, and none of ?, #, @, %, \\ or white space"
        )
    return printable(name, "a model's name")


def printable(value: str, what: str) -> str:
    """Return `value` unchanged; refuse control characters, which could forge log lines and break databases.

    Raises:
        ValueError: `value` is blank or holds an unprintable character.
    """
    if not value.strip() or not value.isprintable():
        raise ValueError(f"{what} must be printable text without line breaks")
    return value


_SEQUENCES = (tuple, list)


def _has_lone_surrogate(held: Iterable[object]) -> bool:
    """Return whether a text among these values, or within them, cannot be written as UTF-8."""
    values = list(held)
    for value in values:  # grows on the way, by what each value holds
        if isinstance(value, str):
            if not value.isascii() and not _is_unicode(value):
                return True
        elif isinstance(value, _SEQUENCES):
            values += value
        elif isinstance(value, BaseModel):
            values += vars(value).values()
        elif isinstance(value, Mapping):
            values += (*value, *value.values())
    return False


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


Dollars = Annotated[Decimal, PlainSerializer(float, return_type=float, when_used="json-unless-none")]
"""Exact; a number in JSON."""


class TokenUsage(Frozen):
    """Tokens of one call. None is unknown, which is not zero."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    """With those of the reasoning, which providers bill as output."""
    cached_input_tokens: int | None = Field(default=None, exclude_if=lambda count: count is None)
    """Those of the input that the provider read from its own cache, at its lower price."""
    cache_write_tokens: int | None = Field(default=None, exclude_if=lambda count: count is None)
    """Those of the input that the provider wrote to its own cache, at its higher price; None where it wrote none."""
    cache_write_1h_tokens: int | None = Field(default=None, exclude_if=lambda count: count is None)
    """Those of what it wrote that it keeps for an hour instead of five minutes, at a price of their own."""

    @property
    def total_tokens(self) -> int | None:
        """Input plus output; None while either is unknown."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        return self.input_tokens + self.output_tokens


NO_USAGE = TokenUsage(input_tokens=0, output_tokens=0)
UNKNOWN_USAGE = TokenUsage()


class LLMCallContext(Frozen):
    """Whom a call belongs to: the tenant, the workflow run, the step of it, and the key of the call."""

    workspace_id: str | None = Field(default=None, min_length=1, max_length=MAX_KEY_CHARS)
    pipeline_run_id: str | None = Field(default=None, min_length=1, max_length=MAX_KEY_CHARS)
    stage: str | None = Field(default=None, min_length=1, max_length=MAX_KEY_CHARS)
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=MAX_KEY_CHARS)

    @field_validator("*")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        return value if value is None else printable(value, "a context field")


class Attempt(Frozen):
    """One send to one provider."""

    ordinal: int
    """1 for the first send of the run."""
    provider: LLMProvider
    model: str
    candidate_sha256: str
    status: Literal["SUCCEEDED", "FAILED", "CANCELLED"]
    started_at: datetime
    finished_at: datetime
    latency_ms: float
    error_code: str | None = None
    http_status: int | None = None
    retry_after_s: float | None = None
    possibly_paid: bool = False
    usage: TokenUsage = UNKNOWN_USAGE
    cost_usd: Dollars | None = None
    """None is unknown."""
    price_version: str | None = None
    """Whose prices these were, and of which version."""


class LLMResponse(Frozen):
    """An answer with its provenance."""

    parts: tuple[Annotated[TextPart | ToolCallPart | ThinkingPart, Field(discriminator="type")], ...]
    finish_reason: FinishReason
    usage: TokenUsage
    """What THIS call's answer consumed: zero for a replay or a hit. Failed sends have theirs on their attempts."""
    original_usage: TokenUsage
    """What the answer consumed when it was made."""
    provider: LLMProvider
    model: str
    run_id: str
    """The row of this call; for a replay the row that made the answer."""
    served_from: ServedFrom
    route: tuple[
        dict[str, SkipValidation[JsonValue]], ...
    ] = ()  # our own words; each check would cost a call
    """As `RouteDecision.summary`."""
    attempts: tuple[Attempt, ...] = ()
    persisted: bool = True
    """False when the row could not be written yet (it is spooled) or runs are not persisted at all."""
    latency_ms: float = 0.0
    cost_usd: Dollars | None = None
    """None is unknown; local models cost 0."""

    @property
    def text(self) -> str:
        """The text parts, joined; empty when the model only called tools."""
        return "".join([part.text for part in self.parts if isinstance(part, TextPart)])

    @property
    def thinking(self) -> str | None:
        """The reasoning that the model showed, joined; None without any."""
        return "".join(part.text for part in self.parts if isinstance(part, ThinkingPart)) or None

    @property
    def tool_calls(self) -> tuple[ToolCallPart, ...]:
        """The calls that the model asks for."""
        return tuple(part for part in self.parts if isinstance(part, ToolCallPart))
