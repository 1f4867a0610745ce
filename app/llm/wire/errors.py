"""Says which of our errors a failed send is: by HTTP status first, by class second, by what lies beneath third.

LiteLLM's own classes mislead (a refused connection is a 500 there), so the status that the provider sent decides
wherever there is one. Texts are one line, free of secrets, and say what to do.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from app.llm.errors import (
    LLMAuth,
    LLMBadRequest,
    LLMBadResponse,
    LLMCapability,
    LLMContentFiltered,
    LLMContextExceeded,
    LLMInternal,
    LLMModelNotFound,
    LLMProviderError,
    LLMRateLimited,
    LLMTimeout,
    LLMUnavailable,
    LLMUnknown,
)
from app.llm.types import LLMProvider
from app.llm.wire.exchange import GOOD, BrokenOff, Stalled, Unreachable, UnusableReply

MAX_SAID_CHARS = 300

_SECONDS = re.compile(r"(\d{1,9}(?:\.\d+)?)")
_RETRY_DELAY = re.compile(r'"retryDelay"\s*:\s*"(\d{1,9}(?:\.\d+)?)s"')

_TOO_LARGE, _LIMIT_OF_TOKENS = 413, "rate_limit_exceeded"
"""How Groq refuses a request that has more tokens than it takes in a minute, whenever it comes."""

_OWN_BUGS = (ImportError, TypeError, NameError, AttributeError, AssertionError, NotImplementedError)
_MAY_NAME_A_WAIT = {429, 503, 529}

BY_CLASS: Mapping[str, type[LLMProviderError]] = {
    "AuthenticationError": LLMAuth,
    "PermissionDeniedError": LLMAuth,
    "NotFoundError": LLMModelNotFound,
    "BadRequestError": LLMBadRequest,
    "InvalidRequestError": LLMBadRequest,
    "RejectedRequestError": LLMBadRequest,
    "ImageFetchError": LLMBadRequest,
    "UnprocessableEntityError": LLMBadRequest,
    "ContextWindowExceededError": LLMContextExceeded,
    "UnsupportedParamsError": LLMCapability,
    "ContentPolicyViolationError": LLMContentFiltered,
    "GuardrailRaisedException": LLMContentFiltered,
    "BlockedPiiEntityError": LLMContentFiltered,
    "ModifyResponseException": LLMContentFiltered,
    "SensitiveDataRouteException": LLMContentFiltered,
    "RateLimitError": LLMRateLimited,
    "Timeout": LLMTimeout,
    "ServiceUnavailableError": LLMUnavailable,
    "BadGatewayError": LLMUnavailable,
    "InternalServerError": LLMUnavailable,
    "APIConnectionError": LLMUnavailable,
    "MidStreamFallbackError": LLMUnavailable,
    "APIResponseValidationError": LLMBadResponse,
    "JSONSchemaValidationError": LLMBadResponse,
    "LiteLLMUnknownProvider": LLMInternal,
    "ModelNotMappedError": LLMInternal,
    "VectorStoreSearchError": LLMInternal,
    "BudgetExceededError": LLMInternal,
    "MockException": LLMInternal,
    "APIError": LLMUnknown,
    "OpenAIError": LLMUnknown,
}
"""Each class of `litellm.exceptions`, on purpose; those of features that are never switched on here are `internal`."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Who was asked, and where."""

    provider: LLMProvider
    model: str
    api_base: str

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """What a failure is. None leaves an attribute to the class."""

    error: type[LLMProviderError]
    text: str
    possibly_paid: bool | None = None
    retryable: bool | None = None
    capability: str | None = None


_ANY_4XX, _ANY_5XX = range(400, 500), range(500, 600)

_TOO_LONG = _Verdict(error=LLMContextExceeded, text="cannot hold the prompt")
_NO_CREDIT = _Verdict(error=LLMRateLimited, text="has no credit left: top up its account", retryable=False)
_TOO_MUCH = _Verdict(
    error=LLMRateLimited, text="takes fewer tokens in a minute than this request has", retryable=False
)
_FLAGGED = _Verdict(error=LLMContentFiltered, text="filtered the prompt", possibly_paid=False)

_BY_CODE: Mapping[str, _Verdict] = {
    "insufficient_quota": _NO_CREDIT,
    "billing_error": _NO_CREDIT,
    "context_length_exceeded": _TOO_LONG,
    "invalid_prompt": _FLAGGED,
    "content_filter": _FLAGGED,
    "tool_use_failed": _Verdict(
        error=LLMBadResponse, text="wrote a tool call that it could not read", possibly_paid=True
    ),
    "json_validate_failed": _Verdict(
        error=LLMBadResponse, text="wrote JSON that it could not read", possibly_paid=True
    ),
}
"""What a code, or a type, of an error says better than its status.

Sources: https://platform.openai.com/docs/guides/error-codes, https://console.groq.com/docs/tool-use,
https://console.groq.com/docs/structured-outputs, https://docs.anthropic.com/en/api/errors.
"""

_BY_STATUS: Mapping[int, _Verdict] = {
    402: _NO_CREDIT,
    401: _Verdict(error=LLMAuth, text="refused the credentials (401)"),
    403: _Verdict(error=LLMAuth, text="refused the credentials (403)"),
    404: _Verdict(error=LLMModelNotFound, text="was not found (404)"),
    408: _Verdict(error=LLMTimeout, text="took too long (408)", possibly_paid=True),
    429: _Verdict(error=LLMRateLimited, text="has had too many calls (429)"),
}

_BY_WORDS: tuple[tuple[range, re.Pattern[str], _Verdict], ...] = (
    (
        _ANY_4XX,
        re.compile(r"(?i)credit balance is too low"),
        _NO_CREDIT,
    ),
    (
        _ANY_4XX,
        re.compile(r"(?i)output blocked by content filtering policy"),
        _Verdict(error=LLMContentFiltered, text="filtered the answer", possibly_paid=True),
    ),
    (
        _ANY_4XX,
        re.compile(
            r"(?i)when thinking is enabled|thinking may not be enabled|greater than `?thinking\.budget_tokens"
        ),
        _Verdict(error=LLMCapability, text="cannot do while it thinks what was asked"),
    ),
    (
        _ANY_4XX,
        re.compile(r"(?i)api[ _]key not valid|api key expired"),
        _Verdict(error=LLMAuth, text="refused the key"),
    ),
    (
        _ANY_4XX,
        re.compile(
            r"(?i)does not support (\w+)|(\w+)(?: modality)? is not enabled for (?:this model|models/)"
        ),
        _Verdict(error=LLMCapability, text="cannot do what was asked"),
    ),
    (
        range(400, 600),
        re.compile(
            r"(?i)exceeds? (?:the )?(?:maximum number of tokens|(?:available )?context)|prompt is too long"
            r"|context (?:length|window) exceeded|maximum context length|reduce the length of the messages"
        ),
        _TOO_LONG,
    ),
    (
        _ANY_5XX,
        re.compile(r"(?i)requires more (?:system|gpu) memory|out of memory|cudamalloc failed"),
        _Verdict(error=LLMUnavailable, text="does not fit into memory", possibly_paid=False, retryable=False),
    ),
    (
        _ANY_5XX,
        re.compile(r"(?i)server busy"),
        _Verdict(error=LLMUnavailable, text="is busy", possibly_paid=False),
    ),
)
"""Some statuses mean several things; then the provider's words decide. A group names the missing capability."""


def map_error(  # noqa: PLR0913  # the facts of one failure
    error: BaseException,
    *,
    provider: LLMProvider,
    model: str,
    api_base: str,
    status: int | None,
    headers: Mapping[str, str],
    body_text: str,
    redact: Callable[[str], str],
    written: bool = True,
) -> LLMProviderError:
    """Return our error for a failed send; it holds nothing of `error`, whose chain leads to request headers.

    Args:
        error: What was raised: by aiohttp if the connection failed, else by LiteLLM.
        provider: Who was asked.
        model: Which model was asked.
        api_base: Where it was asked.
        status: HTTP status, if the provider sent one.
        headers: Headers of that answer, names in lower case.
        body_text: Body of that answer.
        redact: Takes secrets out of text.
        written: Whether a byte of the request may have reached the provider.
    """
    asked = _Asked(provider, model, api_base)
    said = ""  # the body of a good answer is the user's, not the log's
    if status is not None and status not in GOOD:
        said = _said(body_text, redact)
        verdict = _by_code(status, body_text) or _by_status(status, said)
    else:
        verdict = _by_class(error, asked, answered=status is not None, written=written)
    text = "; ".join(filter(None, (f"{asked} {verdict.text}", said, _advice(verdict.error, asked))))
    mapped = verdict.error(
        redact(" ".join(text.split())),
        provider=provider,
        model=model,
        http_status=status,
        retry_after_s=_retry_after_s(headers, body_text) if status in _MAY_NAME_A_WAIT else None,
        capability=verdict.capability,
        possibly_paid=verdict.possibly_paid if written or status else False,
    )
    if verdict.retryable is not None:
        mapped.retryable = verdict.retryable  # this one, not its class
    return mapped


def _by_code(status: int, body_text: str) -> _Verdict | None:
    payload = _json(body_text)
    error = payload.get("error") if isinstance(payload, dict) else None
    named = [error.get(name) for name in ("code", "type")] if isinstance(error, dict) else []
    codes = [each for each in named if isinstance(each, str)]
    if status == _TOO_LARGE and _LIMIT_OF_TOKENS in codes:
        return _TOO_MUCH
    return next((_BY_CODE[code] for code in codes if code in _BY_CODE), None)


def _by_status(status: int, said: str) -> _Verdict:
    for statuses, pattern, verdict in _BY_WORDS:
        if status in statuses and (found := pattern.search(said)):
            what = " ".join(filter(None, found.groups())).lower()
            return replace(verdict, capability=what or None)
    return _BY_STATUS.get(status) or _by_range(status)


def _by_range(status: int) -> _Verdict:
    if status in range(300, 400):
        text = f"redirects elsewhere, which is not followed ({status})"
        return _Verdict(error=LLMUnavailable, text=text, possibly_paid=False, retryable=False)
    if status in _ANY_4XX:
        return _Verdict(error=LLMBadRequest, text=f"refused the request ({status})")
    if status in _ANY_5XX:
        return _Verdict(error=LLMUnavailable, text=f"failed ({status})", possibly_paid=True)
    return _Verdict(error=LLMUnknown, text=f"answered with a status that makes no sense ({status})")


def _by_class(error: BaseException, asked: _Asked, *, answered: bool, written: bool) -> _Verdict:
    """Judge a failure without a status that tells; `answered`: the provider had sent one of the good ones."""
    match error:
        case Unreachable():
            return _unreachable(str(error), asked)
        case BrokenOff():
            return _Verdict(error=LLMUnavailable, text=f"broke off ({error})", possibly_paid=True)
        case UnusableReply():
            return _Verdict(error=LLMBadResponse, text=f"sent what cannot be used: {error}")
        case TimeoutError():
            stalled = f"stopped within its answer: {error}" if isinstance(error, Stalled) else None
            text = stalled or "gave no complete answer in time"
            return _Verdict(error=LLMTimeout, text=text, possibly_paid=written)
        case _:
            return _of_the_library(error, answered=answered)


def _of_the_library(error: BaseException, *, answered: bool) -> _Verdict:
    """Judge what LiteLLM raised of its own accord."""
    beneath = next((each for each in _chain(error) if isinstance(each, _OWN_BUGS)), None)
    if isinstance(beneath, ImportError) or (beneath and not answered):
        text = f"was not asked properly: {type(beneath).__name__} in the client library"
        return _Verdict(error=LLMInternal, text=text, possibly_paid=answered)
    if answered:
        return _Verdict(error=LLMBadResponse, text="sent what the client library cannot read")
    names = (BY_CLASS.get(each.__name__) for each in type(error).__mro__)
    found = next(filter(None, names), LLMUnknown)
    maybe = True if issubclass(found, LLMUnavailable | LLMTimeout) else None
    return _Verdict(error=found, text=f"failed with {type(error).__name__}", possibly_paid=maybe)


def _unreachable(reason: str, asked: _Asked) -> _Verdict:
    trusted = "certificate" not in reason.lower()
    if not trusted:
        text = f"shows a certificate at {asked.api_base} that is not trusted: set LLM_CA_BUNDLE"
    elif asked.provider is LLMProvider.OLLAMA:
        text = (
            f"does not answer at {asked.api_base}: start it with `ollama serve`, or set LLM_OLLAMA_API_BASE"
        )
    else:
        variable = f"LLM_{asked.provider.upper()}_API_BASE"
        text = f"does not answer at {asked.api_base}: check the network, its proxy and {variable}"
    return _Verdict(
        error=LLMUnavailable,
        text=f"{text} ({reason})",
        possibly_paid=False,
        retryable=None if trusted else False,
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _advice(error: type[LLMProviderError], asked: _Asked) -> str:
    ollama = asked.provider is LLMProvider.OLLAMA
    advice: Mapping[type[LLMProviderError], str] = {
        LLMAuth: "check LLM_OLLAMA_API_KEY and LLM_OLLAMA_HEADERS"
        if ollama
        else f"check LLM_{asked.provider.upper()}_API_KEY",
        LLMModelNotFound: f"run `ollama pull {asked.model}`" if ollama else "check the name of the model",
        LLMContextExceeded: f"shorten the prompt{' or raise LLM_OLLAMA_NUM_CTX' if ollama else ''}",
    }
    return advice.get(error, "")


def _said(body_text: str, redact: Callable[[str], str]) -> str:
    """Return the provider's own words, capped: the message of its error, else the start of the body."""
    payload = _json(body_text)
    error = payload.get("error") if isinstance(payload, dict) else None
    words = error.get("message") if isinstance(error, dict) else error
    text = words if isinstance(words, str) else re.sub(r"<[^<>]*>", " ", body_text)
    return redact(" ".join(text.split()))[:MAX_SAID_CHARS]  # in this order, or half a secret would stay


def _json(text: str) -> Any:  # JSON
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _retry_after_s(headers: Mapping[str, str], body_text: str) -> float | None:
    """Return the wait that was asked for: Retry-After (RFC 9110, 10.2.3), else google.rpc.RetryInfo."""
    header = headers.get("retry-after", "").strip()
    if found := _SECONDS.fullmatch(header):
        return float(found[1])
    if (until := _date(header)) is not None:
        sent = _date(headers.get("date", "")) or datetime.now(UTC)
        return max(0.0, (until - sent).total_seconds())
    found = _RETRY_DELAY.search(body_text)
    return float(found[1]) if found else None


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
