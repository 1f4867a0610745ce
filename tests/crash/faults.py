"""Every fault of a provider as one row: how to cause it and what must come of it; tested, and printed as a table.

What a row promises for one cell (provider, policy, company) follows from the few rules of `Fault.expected`, which
look at the row alone: nothing here asks the code under test.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

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
from app.llm.testing import Reply

OLLAMA, GEMINI = "ollama", "gemini"
BOTH = (OLLAMA, GEMINI)
FURTHER = ("openai", "anthropic", "groq")
"""Who is asked through `acompletion` alone: each fault meets them twice, since the rules above the wire are the same."""
WINDOWS = {OLLAMA: 8_192, GEMINI: 1_048_576, "openai": 128_000, "anthropic": 200_000, "groq": 131_072}
"""Tokens, with the settings as they come."""
POLICIES = ("never", "fallback_only", "always")
SENDS_PER_CANDIDATE = 2
FINE = "fine"
FINE_TOKENS = 8
HEALTHY_REPLY = Reply.text(FINE, usage=(3, 5))


class Kind(NamedTuple):
    """An error as a caller catches it and as the row stores it."""

    error: type[LLMProviderError]
    code: str


UNAVAILABLE = Kind(LLMUnavailable, "unavailable")
TIMEOUT = Kind(LLMTimeout, "timeout")
RATE_LIMITED = Kind(LLMRateLimited, "rate_limited")
BAD_REQUEST = Kind(LLMBadRequest, "bad_request")
CONTEXT_EXCEEDED = Kind(LLMContextExceeded, "context_exceeded")
CAPABILITY = Kind(LLMCapability, "capability")
AUTH = Kind(LLMAuth, "auth")
MODEL_NOT_FOUND = Kind(LLMModelNotFound, "model_not_found")
CONTENT_FILTERED = Kind(LLMContentFiltered, "content_filtered")
BAD_RESPONSE = Kind(LLMBadResponse, "bad_response")
INTERNAL = Kind(LLMInternal, "internal")
UNKNOWN = Kind(LLMUnknown, "unknown")


class Falls(Enum):
    """Whether another candidate is asked next."""

    NO = "no"
    YES = "yes"
    LARGER = "to a larger window"
    IF_SET = "if `LLM_FALLBACK_ON` names it"


class Paid(Enum):
    """Whether the provider may charge for the failed send."""

    NO = "no"
    MAYBE = "maybe"
    YES = "yes"


class How(Enum):
    """How a fault is caused."""

    REPLY = "the stub says so"
    HELD = "the stub counts the call and says nothing"
    DOWN = "nobody listens on the stub's port"
    NO_NAME = "the host's name does not resolve"
    DEFECT = "the client library fails before it sends"


class Company(Enum):
    """Who stands behind the faulty candidate."""

    ALONE = "alone"
    HEALTHY = "healthy second"
    SICK = "second refuses the key"
    ALLOWED = "healthy second, LLM_FALLBACK_ON set"


class Cell(NamedTuple):
    """One run of the matrix."""

    provider: str
    policy: str
    company: Company

    @property
    def other(self) -> str:
        """The provider of the second candidate."""
        return GEMINI if self.provider == OLLAMA else OLLAMA

    @property
    def further(self) -> bool:
        """Whether the provider is none of the first two."""
        return self.provider in FURTHER

    def __str__(self) -> str:
        return f"{self.provider}, {self.policy}, {self.company.value}"


class Sent(NamedTuple):
    """One attempt as its row has it."""

    provider: str
    status: str
    code: str | None
    http: int | None
    possibly_paid: bool
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run leaves: for its caller, in the database, and at the stubs."""

    error: type[LLMProviderError] | None
    status: str
    error_code: str | None
    possibly_paid: bool
    """Whether one of the failed sends may be charged."""
    tokens: int | None
    attempts: tuple[Sent, ...]
    arrived: tuple[int, int]
    """Model calls that the stub of the faulty candidate counted, and that of the second one."""
    waits_s: tuple[float | None, ...]
    """Waits between sends, in seconds; None: the jittered back-off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row. Without a `kind` the answer is accepted."""

    name: str
    todo: str
    replies: Mapping[str, Reply] = field(default_factory=dict)
    """By provider; one that is missing cannot show this fault. Empty where `how` is no reply."""
    how: How = How.REPLY
    kind: Kind | None = None
    http: int | None = None
    """The status that was seen before it failed."""
    says: str = ""
    """A regular expression that the message matches."""
    retried: bool = False
    falls: Falls = Falls.NO
    paid: Paid = Paid.NO
    tokens: int | None = None
    """Of an accepted answer; None: unknown."""
    wait_s: float | None = None
    """Seconds that the provider asks for."""
    attempt_timeout_s: float = 30.0
    call_timeout_s: float = 120.0
    policies: tuple[str, ...] = POLICIES

    @property
    def providers(self) -> tuple[str, ...]:
        """Who can show it."""
        return tuple(self.replies) or (*BOTH, *FURTHER)

    @property
    def title(self) -> str:
        """The name, with the provider where only one can show it."""
        return self.name if len(self.providers) > 1 else f"{self.name} ({self.providers[0].capitalize()})"

    @property
    def hangs(self) -> bool:
        """Whether the provider would go on for ever, had the client not hung up."""
        return self.how is How.HELD or self.attempt_timeout_s < 1

    def cells(self) -> Iterator[Cell]:
        """Yield the runs that test this row; only the default policy meets good answers and sick seconds."""
        companies = [Company.ALONE, Company.HEALTHY]
        if self.falls is Falls.IF_SET:
            companies.append(Company.ALLOWED)
        for provider in self.providers:
            if provider in FURTHER:
                yield from self._further_cells(provider)
                continue
            for policy in self.policies if self.kind else ("fallback_only",):
                yield from (Cell(provider, policy, company) for company in companies)
            if self.kind and not self.hangs and "fallback_only" in self.policies:
                yield Cell(provider, "fallback_only", Company.SICK)

    def _further_cells(self, provider: str) -> Iterator[Cell]:
        yield Cell(provider, "always" if self.kind else "fallback_only", Company.ALONE)
        if self.kind and "fallback_only" in self.policies:
            yield Cell(provider, "fallback_only", Company.HEALTHY)

    def expected(self, cell: Cell) -> Outcome:
        """Return what the run of `cell` must leave."""
        if self.kind is None:
            return self._accepted(cell)
        paid = self.paid is not Paid.NO
        again = self.retried and (not paid or cell.policy == "always")
        sends = 0 if self.how is How.DEFECT else SENDS_PER_CANDIDATE if again else 1
        moves = self._moves(cell) and (not paid or cell.policy != "never")
        failed = Sent(cell.provider, "FAILED", self.kind.code, self.http, paid, self.wait_s)
        attempts = [failed] * sends
        kind: Kind | None = self.kind
        if moves and cell.company is Company.SICK:
            attempts.append(Sent(cell.other, "FAILED", AUTH.code, 401, possibly_paid=False))
            kind = AUTH
        elif moves:
            attempts.append(Sent(cell.other, "SUCCEEDED", None, 200, possibly_paid=False))
            kind = None
        return Outcome(
            error=kind.error if kind else None,
            status="FAILED" if kind else "SUCCEEDED",
            error_code=kind.code if kind else None,
            possibly_paid=paid,
            tokens=None if kind else FINE_TOKENS,
            attempts=tuple(attempts),
            arrived=(0 if self.how in {How.DOWN, How.NO_NAME} else sends, int(moves)),
            waits_s=(self.wait_s,) * max(0, sends - 1),
        )

    def _accepted(self, cell: Cell) -> Outcome:
        return Outcome(
            error=None,
            status="SUCCEEDED",
            error_code=None,
            possibly_paid=False,
            tokens=self.tokens,
            attempts=(Sent(cell.provider, "SUCCEEDED", None, 200, possibly_paid=False),),
            arrived=(1, 0),
            waits_s=(),
        )

    def _moves(self, cell: Cell) -> bool:
        if cell.company is Company.ALONE or self.falls is Falls.NO:
            return False
        if self.falls is Falls.LARGER:
            return WINDOWS[cell.other] > WINDOWS[cell.provider]
        return self.falls is Falls.YES or cell.company is Company.ALLOWED


# -- how each provider says it


def _all(reply: Reply) -> dict[str, Reply]:
    return dict.fromkeys((*BOTH, *FURTHER), reply)


def _said_by(
    *,
    ollama: Mapping[str, Any],
    gemini: Mapping[str, Any],
    openai: Mapping[str, Any],
    anthropic: Mapping[str, Any],
    message: Mapping[str, Any] | None = None,
    content_type: str = "application/json",
) -> dict[str, Reply]:
    """Return a whole answer of each provider with these top-level fields beside the text (NaN included)."""
    said = {"role": "assistant", "content": FINE} if message is None else message
    parts = {"content": {"parts": [{"text": FINE}], "role": "model"}, "finishReason": "STOP", "index": 0}
    chat = {"choices": [{"message": {"content": FINE}, "finish_reason": "stop"}], "usage": openai}
    bodies = {
        OLLAMA: {"model": "first", "message": said, "done_reason": "stop", "done": True, **ollama},
        GEMINI: {"candidates": [parts], "usageMetadata": gemini},
        "openai": chat,
        "groq": chat,
        "anthropic": {
            "content": [{"type": "text", "text": FINE}],
            "stop_reason": "end_turn",
            "usage": anthropic,
        },
    }
    return {
        provider: Reply.raw(json.dumps(body).encode(), content_type=content_type)
        for provider, body in bodies.items()
    }


def _counted(read: object, written: object, total: object = 0, **how: str) -> dict[str, Reply]:
    return _said_by(
        ollama={"prompt_eval_count": read, "eval_count": written},
        gemini={"promptTokenCount": read, "candidatesTokenCount": written, "totalTokenCount": total},
        openai={"prompt_tokens": read, "completion_tokens": written, "total_tokens": total},
        anthropic={"input_tokens": read, "output_tokens": written},
        **how,
    )


def _ollama_calls(function: Mapping[str, Any]) -> dict[str, Reply]:
    message = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    return {OLLAMA: _said_by(ollama={}, gemini={}, openai={}, anthropic={}, message=message)[OLLAMA]}


_ASK_AGAIN = {"retried": True, "falls": Falls.YES}
_BROKEN = {"kind": UNAVAILABLE, **_ASK_AGAIN, "paid": Paid.MAYBE}
_UNUSABLE = {"kind": BAD_RESPONSE, **_ASK_AGAIN, "http": 200, "paid": Paid.YES}
_LIMITED = {"kind": RATE_LIMITED, **_ASK_AGAIN, "http": 429}
_FILTERED = {"kind": CONTENT_FILTERED, "falls": Falls.IF_SET, "http": 200, "paid": Paid.YES}

_WATCH_ITS_LOG = "Look at the provider's log or status page; a second candidate bridges it."
_MEND_REQUEST = (
    "Mend the request: the message quotes the provider. Another candidate would get the same mistake."
)
_NOT_A_MODEL = "Something else than the provider answers there: check the API base and the proxies between."
_LET_IT_WAIT = "Nothing; lower `LLM_{PROVIDER}_CONCURRENCY_LIMIT` or ask for more quota if it is frequent."
_REPHRASE = "Rephrase, or name `content_filtered` in `LLM_FALLBACK_ON` to let another candidate judge."

CONNECTION = (
    Fault(
        name="connection refused", how=How.DOWN, kind=UNAVAILABLE, **_ASK_AGAIN, says="does not answer at",
        todo="Start the server, or correct `LLM_OLLAMA_API_BASE` / `LLM_GEMINI_API_BASE`.",
    ),
    Fault(
        name="host name unknown", how=How.NO_NAME, kind=UNAVAILABLE, **_ASK_AGAIN, says="does not answer at",
        todo="Correct the API base; check the machine's DNS.",
    ),
    Fault(name="reset before the headers", replies=_all(Reply.reset()), **_BROKEN, todo=_WATCH_ITS_LOG),
    Fault(
        name="closed before the headers", replies=_all(Reply.reset(abrupt=False)), **_BROKEN,
        todo=_WATCH_ITS_LOG,
    ),
    Fault(
        name="reset after the headers", replies=_all(Reply.reset(before_headers=False)), **_BROKEN, http=200,
        todo=_WATCH_ITS_LOG,
    ),
    Fault(
        name="body cut short", replies=_all(Reply.truncated(HEALTHY_REPLY)), **_BROKEN, http=200,
        todo=_WATCH_ITS_LOG,
    ),
    Fault(
        name="body byte by byte", replies=_all(Reply.drip(0.05, Reply.text("x" * 1_000))), kind=TIMEOUT,
        **_ASK_AGAIN, http=200, paid=Paid.MAYBE, attempt_timeout_s=0.5,
        todo="Raise `LLM_ATTEMPT_TIMEOUT_S` if the model is merely slow; it bounds the whole answer, not one read.",
    ),
    Fault(
        name="headers byte by byte", replies=_all(Reply.drip(0.05, HEALTHY_REPLY, headers=True)), kind=TIMEOUT,
        **_ASK_AGAIN, paid=Paid.MAYBE, attempt_timeout_s=0.5,
        todo="As for a body byte by byte; a proxy that never finishes its status line looks like this.",
    ),
    Fault(
        name="no answer within the attempt's time", how=How.HELD, kind=TIMEOUT, **_ASK_AGAIN, paid=Paid.MAYBE,
        attempt_timeout_s=0.5, todo="Raise `LLM_ATTEMPT_TIMEOUT_S`, or ask a smaller model.",
    ),
    Fault(
        name="no answer before the call's deadline", how=How.HELD, kind=TIMEOUT, paid=Paid.MAYBE,
        call_timeout_s=0.5, policies=("always",),
        todo="Raise the request's `timeout_s` or `LLM_DEFAULT_TIMEOUT_S`: no time was left for anybody else.",
    ),
)  # fmt: skip

REFUSED_REQUEST = tuple(
    Fault(name=f"{status} {what}", replies=_all(Reply.status(status)), kind=BAD_REQUEST, http=status,
          todo=_MEND_REQUEST)
    for status, what in (
        (400, "bad request"), (409, "conflict"), (413, "too large"), (415, "media type"), (422, "unprocessable"),
    )
)  # fmt: skip

OURS = (
    Fault(
        name="defect of the client library", how=How.DEFECT, kind=INTERNAL, says="was not asked properly",
        todo="Report it; nothing was sent. Go back to the pinned LiteLLM if it was upgraded.",
    ),
)  # fmt: skip

STATED = (
    *REFUSED_REQUEST,
    Fault(
        name="401 credentials", replies=_all(Reply.status(401)), kind=AUTH, http=401, falls=Falls.IF_SET,
        todo="Check `LLM_GEMINI_API_KEY`, or `LLM_OLLAMA_API_KEY` and `LLM_OLLAMA_HEADERS`.",
    ),
    Fault(
        name="403 forbidden", replies=_all(Reply.status(403)), kind=AUTH, http=403, falls=Falls.IF_SET,
        todo="As for 401; the key may lack the right to this model.",
    ),
    Fault(
        name="wrong key, said as 400", kind=AUTH, http=400, falls=Falls.IF_SET, says="check LLM_GEMINI_API_KEY",
        replies={GEMINI: Reply.status(400, message="API key not valid. Please pass a valid API key.")},
        todo="Check `LLM_GEMINI_API_KEY`.",
    ),
    Fault(
        name="402 no credit", replies=_all(Reply.status(402)), kind=RATE_LIMITED, http=402, falls=Falls.YES,
        says="has no credit left", todo="Top up the account; until then the next candidate is asked.",
    ),
    Fault(
        name="413, more tokens than a minute has", kind=RATE_LIMITED, http=413, falls=Falls.YES,
        replies={"groq": Reply.status(413, body={"error": {
            "message": "Request too large for model on tokens per minute (TPM)", "type": "tokens",
            "code": "rate_limit_exceeded",
        }})},
        todo="Shorten the prompt or lower `max_output_tokens`, or ask for more tokens a minute.",
    ),
    Fault(
        name="400, a tool call that it could not read", kind=BAD_RESPONSE, **_ASK_AGAIN, http=400, paid=Paid.MAYBE,
        replies={"groq": Reply.status(400, body={"error": {
            "message": "Failed to call a function. See 'failed_generation' for more details.",
            "type": "invalid_request_error", "code": "tool_use_failed",
        }})},
        todo="Ask a model that is better with tools.",
    ),
    Fault(
        name="404 unknown model", replies=_all(Reply.status(404)), kind=MODEL_NOT_FOUND, http=404,
        falls=Falls.IF_SET, todo="`ollama pull MODEL`, or correct the model's name.",
    ),
    Fault(
        name="408 too slow", replies=_all(Reply.status(408)), kind=TIMEOUT, **_ASK_AGAIN, http=408,
        paid=Paid.MAYBE, todo=_WATCH_ITS_LOG,
    ),
    Fault(name="429", replies=_all(Reply.status(429)), **_LIMITED, todo=_LET_IT_WAIT),
    Fault(
        name="429, wait in seconds", replies=_all(Reply.status(429, headers={"Retry-After": "7"})), **_LIMITED,
        wait_s=7.0, todo=_LET_IT_WAIT,
    ),
    Fault(
        name="429, wait until a date", **_LIMITED, wait_s=30.0, todo=_LET_IT_WAIT,
        replies=_all(Reply.status(429, headers={
            "Retry-After": "Wed, 21 Oct 2099 07:28:30 GMT", "Date": "Wed, 21 Oct 2099 07:28:00 GMT",
        })),
    ),
    Fault(
        name="429, wait in its body", replies={GEMINI: Reply.rate_limited(9)}, **_LIMITED, wait_s=9.0,
        todo=_LET_IT_WAIT,
    ),
    Fault(
        name="429, wait longer than the call's time", kind=RATE_LIMITED, http=429, falls=Falls.YES, wait_s=3600.0,
        replies=_all(Reply.status(429, headers={"Retry-After": "3600"})),
        todo="Call again after the error's `retry_after_s`.",
    ),
    *(
        Fault(name=f"{status}", replies=_all(Reply.status(status)), **_BROKEN, http=status, todo=_WATCH_ITS_LOG)
        for status in (500, 502, 504, 529)
    ),
    Fault(
        name="503 overloaded", replies=_all(Reply.status(503, message="overloaded")), **_BROKEN, http=503,
        todo=_WATCH_ITS_LOG,
    ),
    Fault(
        name="503, wait in seconds", **_BROKEN, http=503, wait_s=2.0, todo=_WATCH_ITS_LOG,
        replies=_all(Reply.status(503, message="overloaded", headers={"Retry-After": "2"})),
    ),
    Fault(
        name="500 with a body without end", **_BROKEN, http=500, todo=_WATCH_ITS_LOG,
        replies=_all(Reply.raw(b"x" * 200_000, status=500)),
    ),
    Fault(
        name="503 queue full", replies={OLLAMA: Reply.busy()}, kind=UNAVAILABLE, **_ASK_AGAIN, http=503,
        says="is busy", todo="Lower `LLM_OLLAMA_CONCURRENCY_LIMIT`, or raise `OLLAMA_MAX_QUEUE` at the server.",
    ),
    Fault(
        name="500 out of memory", replies={OLLAMA: Reply.out_of_memory()}, kind=UNAVAILABLE, falls=Falls.YES,
        http=500, says="does not fit into memory",
        todo="Choose a smaller model or a smaller `LLM_OLLAMA_NUM_CTX`.",
    ),
    Fault(
        name="prompt too long", replies=_all(Reply.context_exceeded()), kind=CONTEXT_EXCEEDED, http=400,
        falls=Falls.LARGER, says="cannot hold the prompt",
        todo="Shorten the prompt, or list a candidate with a larger window behind this one.",
    ),
    Fault(
        name="does not support tools", replies={OLLAMA: Reply.no_tools()}, kind=CAPABILITY, falls=Falls.YES,
        http=400, todo="List a model that can call tools.",
    ),
    Fault(
        name="does not support thinking", kind=CAPABILITY, falls=Falls.YES, http=400,
        replies={OLLAMA: Reply.status(400, message='"first" does not support thinking')},
        todo="List a model that can think, or do not ask for it.",
    ),
    Fault(
        name="does not see images", kind=CAPABILITY, falls=Falls.YES, http=400,
        replies={GEMINI: Reply.status(400, message="Image input modality is not enabled for models/gemma-3-1b-it")},
        todo="List a model that can see.",
    ),
    Fault(
        name="redirect", replies=_all(Reply.redirect("/elsewhere")), kind=UNAVAILABLE, falls=Falls.YES, http=307,
        says="redirects elsewhere, which is not followed",
        todo="Configure the address that it redirects to, if you trust it; prompts do not follow unasked.",
    ),
    Fault(
        name="status that makes no sense", replies=_all(Reply.status(799)), kind=UNKNOWN, http=799,
        paid=Paid.MAYBE, todo="Report it, with the run's row: no rule knows this failure.",
    ),
)  # fmt: skip

UNUSABLE = (
    Fault(name="HTML with 200", replies=_all(Reply.garbage()), **_UNUSABLE, says="not JSON", todo=_NOT_A_MODEL),
    Fault(name="empty body", replies=_all(Reply.empty()), **_UNUSABLE, says="is empty", todo=_NOT_A_MODEL),
    Fault(name="`[]`", replies=_all(Reply.raw(b"[]")), **_UNUSABLE, says="JSON object", todo=_NOT_A_MODEL),
    Fault(
        name="an object of another shape", replies=_all(Reply.raw(b'{"hello": 1}')), **_UNUSABLE,
        todo=_NOT_A_MODEL,
    ),
    Fault(
        name="nesting without end", replies=_all(Reply.raw(b"[" * 200_000)), **_UNUSABLE, todo=_NOT_A_MODEL,
    ),
    Fault(
        name="compression that is none", **_BROKEN, http=200, todo=_NOT_A_MODEL,
        replies=_all(Reply.raw(b"\x1f\x8b\x08 no gzip", headers={"Content-Encoding": "gzip"})),
    ),
    Fault(
        name="more than 16 MiB", replies=_all(Reply.huge(20 * 2**20)), **_UNUSABLE, says="16,777,216 bytes",
        todo="Set `max_output_tokens`; a model that never stops is cut off here.",
    ),
    Fault(
        name="empty answer", replies=_all(Reply.text("")), **_UNUSABLE, says="empty answer",
        todo="Nothing, if it is rare; else another model.",
    ),
    Fault(
        name="only thoughts", replies=_all(Reply.text("", thinking="hm")), **_UNUSABLE, says="empty answer",
        todo="Set `thinking=False`, or ask another model.",
    ),
    Fault(
        name="all tokens spent on thoughts", replies=_all(Reply.text("", thinking="hm", finish="length", usage=(9, 50))),
        kind=BAD_RESPONSE, falls=Falls.YES, http=200, paid=Paid.YES, says="raise it",
        todo="Raise `max_output_tokens`: the same request would end the same way.",
    ),
    Fault(
        name="no candidates", replies={GEMINI: Reply.no_candidates()}, **_UNUSABLE, says="without any candidate",
        todo="Nothing, if it is rare; else another model.",
    ),
    Fault(
        name="model was only loaded", replies={OLLAMA: Reply.load()}, **_UNUSABLE, says="only loaded",
        todo="Nothing, if it is rare; `LLM_OLLAMA_KEEP_ALIVE` keeps the model loaded.",
    ),
    Fault(
        name="window filled, prompt cut silently", replies={OLLAMA: Reply.truncated_context(FINE)},
        kind=CONTEXT_EXCEEDED, falls=Falls.LARGER, http=200, paid=Paid.YES, says="filled its window",
        todo="Shorten the prompt or raise `LLM_OLLAMA_NUM_CTX`.",
    ),
    Fault(
        name="tool call whose arguments are no object", **_UNUSABLE,
        replies=_ollama_calls({"name": "weather", "arguments": [1]}), todo="Ask a model that is better with tools.",
    ),
    Fault(
        name="tool call without a name", **_UNUSABLE, todo="Ask a model that is better with tools.",
        replies=_ollama_calls({"name": "", "arguments": {}}),
    ),
    Fault(
        name="malformed function call", replies={GEMINI: Reply.malformed_function_call()}, **_UNUSABLE,
        says="MALFORMED_FUNCTION_CALL", todo="Simplify the tool's schema, or ask another model.",
    ),
    Fault(name="answer filtered", replies={GEMINI: Reply.blocked("SAFETY")}, **_FILTERED, todo=_REPHRASE),
    Fault(name="recitation", replies={GEMINI: Reply.blocked("RECITATION")}, **_FILTERED, todo=_REPHRASE),
    Fault(name="prompt blocked", replies={GEMINI: Reply.prompt_blocked()}, **_FILTERED, todo=_REPHRASE),
)  # fmt: skip

ACCEPTED = (
    Fault(
        name="wrong content type", replies=_counted(3, 5, 8, content_type="text/html"), tokens=FINE_TOKENS,
        todo="Nothing: the body decides.",
    ),
    Fault(name="no usage", replies=_all(Reply.no_usage(FINE)), todo="Nothing: tokens are unknown, not zero."),
    Fault(name="negative usage", replies=_counted(-3, -5, -8), todo="Nothing: tokens are unknown."),
    Fault(
        name="usage that is NaN", replies=_counted(float("nan"), float("nan")), todo="Nothing: tokens are unknown.",
    ),
    Fault(
        name="usage beyond any integer", replies=_counted(2**63, 1e300), todo="Nothing: tokens are unknown.",
    ),
)  # fmt: skip

FAULTS = (*CONNECTION, *STATED, *UNUSABLE, *OURS, *ACCEPTED)
