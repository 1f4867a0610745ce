"""One recorded call as one line of JSON that a reviewer can read: what was asked, and what came back.

Nothing in it changes from recording to recording unless the call does: no time, no run id, no tenant, no signature of a
provider. Of images and files there is the digest. Keys are sorted. Texts have been through redaction, those of the
request too: what is compared later is what is kept, so a secret is neither needed nor found out.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, JsonValue, TypeAdapter

from app.llm.candidates import Candidate
from app.llm.deltas import Parts
from app.llm.errors import LLMCancelled, LLMProviderError
from app.llm.fingerprint import canonical_content, content_sha256
from app.llm.messages import TextPart, ThinkingPart, ToolCallPart
from app.llm.ports import ProviderReply
from app.llm.types import FinishReason, LLMProvider, LLMRequest, ServedFrom, TokenUsage

VERSION = 1

Redact = Callable[[str], str]
Outcome = ProviderReply | LLMProviderError | None
"""None: the call was cancelled before there was any other."""

_GOOD_STATUS = 200
_HEAD = "no_credentials"
_ATTRIBUTES = ("retryable", "fallback", "possibly_paid")
_OWN_FACTS = frozenset({"provider", "model", "usage", "served_from", *_ATTRIBUTES})
"""Facts of an error that the line says otherwise."""
_OF_THE_PROVIDER = frozenset({"id", "signature"})
"""What a part says to nobody else."""
_PARTS: TypeAdapter[Parts] = TypeAdapter(
    tuple[Annotated[TextPart | ToolCallPart | ThinkingPart, Field(discriminator="type")], ...]
)


class NoLine(ValueError):  # says what is so, as the error tree does
    """Text that is no recorded call; it says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a candidate was asked, as far as it can change the answer, and redacted."""

    candidate: str
    """`provider:model`; where it was, and under which key, is left out."""
    content: Mapping[str, JsonValue]
    """`canonical_content` of the request."""

    @classmethod
    def of(cls, request: LLMRequest, candidate: Candidate, redact: Redact) -> "Asked":
        """Return what is asked of a candidate with a request that is `as_sent_to` it."""
        content: Any = json.loads(_dumped(_scrubbed(canonical_content(request), redact)))
        return cls(candidate=candidate.name, content=content)

    @property
    def fingerprint(self) -> str:
        """The `prompt_sha256` of the request as it is kept, behind the candidate: what is looked for."""
        return f"{self.candidate} {content_sha256(dict(self.content))}"

    @property
    def as_json(self) -> dict[str, JsonValue]:
        """The candidate and the content."""
        return {"candidate": self.candidate, "request": dict(self.content)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """One send: what was asked, and how it ended."""

    asked: Asked
    outcome: Outcome
    partial: Parts = ()
    """What had arrived of an answer that did not come to its end."""

    def line(self) -> str:
        """Return it as JSON without line breaks."""
        if isinstance(self.outcome, ProviderReply):
            response = _of_reply(self.outcome)
        else:
            response = _of_failure(self.outcome, self.partial)
        return _dumped({**self.asked.as_json, "response": response, "v": VERSION})


def kept(asked: Asked, outcome: Outcome, partial: Parts, redact: Redact) -> Interaction:
    """Return an interaction as it is kept: redacted, without what is nobody's but the provider's."""
    if isinstance(outcome, ProviderReply):
        outcome = ProviderReply(
            parts=_harmless(outcome.parts, redact),
            finish_reason=outcome.finish_reason,
            usage=outcome.usage,
            http_status=outcome.http_status,
        )
    elif outcome is not None:
        facts = {name: _scrubbed(value, redact) for name, value in _kept_facts(outcome).items()}
        outcome = _with_attributes(
            type(outcome)(redact(outcome.message), **{**outcome.facts, **facts}),
            {name: getattr(outcome, name) for name in _ATTRIBUTES},
        )
    return Interaction(asked=asked, outcome=outcome, partial=_harmless(partial, redact))


def read_line(text: bytes | str) -> Interaction:
    """Return what `Interaction.line` wrote, or somebody by hand.

    Raises:
        NoLine: It is not JSON, of a newer version, or says something else.
    """
    try:
        body = json.loads(text)
        if body["v"] != VERSION:
            raise NoLine(f"it is of version {body['v']}, and this one reads {VERSION}")  # noqa: TRY301  # one way out
        provider, _, model = body["candidate"].partition(":")
        outcome, partial = _outcome(body["response"], LLMProvider(provider), model)
        asked = Asked(candidate=body["candidate"], content=dict(body["request"]))
    except NoLine:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoLine(" ".join(f"{type(error).__name__}: {error}".split())) from None
    return Interaction(asked=asked, outcome=outcome, partial=partial)


def head(without_key: Iterable[str]) -> str:
    """Return the line that may stand before all calls: the providers that were passed over for want of a key."""
    return _dumped({_HEAD: sorted(without_key), "v": VERSION})


def read_head(text: bytes | str) -> frozenset[str] | None:
    """Return the providers that `head` wrote; None for a line that says something else."""
    try:
        body = json.loads(text)
        names = body[_HEAD] if body["v"] == VERSION else None
    except (ValueError, KeyError, TypeError):
        return None
    return frozenset(map(str, names)) if isinstance(names, list) else None


def kinds() -> Mapping[str, type[LLMProviderError]]:
    """Return the errors that a provider's answer can be, by their code."""
    return {kind.code: kind for kind in _descendants(LLMProviderError)}


def _of_reply(reply: ProviderReply) -> dict[str, JsonValue]:
    said: dict[str, JsonValue] = {
        "finish_reason": reply.finish_reason.value,
        "parts": _dumped_parts(reply.parts),
        "usage": _counts(reply.usage),
    }
    if reply.http_status != _GOOD_STATUS:
        said["http_status"] = reply.http_status
    return said


def _of_failure(error: LLMProviderError | None, partial: Parts) -> dict[str, JsonValue]:
    said: dict[str, JsonValue] = {"error": LLMCancelled.code if error is None else error.code}
    if partial:
        said["partial"] = _dumped_parts(partial)
    if error is None:
        return said
    facts = _kept_facts(error)
    usage = error.facts.get("usage")
    if isinstance(usage, TokenUsage):
        said["usage"] = _counts(usage)
    special = {
        name: getattr(error, name)
        for name in _ATTRIBUTES
        if getattr(error, name) != getattr(type(error), name)
    }
    return {**said, "message": error.message, **({"facts": facts} if facts else {}), **special}


def _outcome(said: Mapping[str, Any], provider: LLMProvider, model: str) -> tuple[Outcome, Parts]:
    """Return the outcome as it is replayed: it says that it comes out of a cassette."""
    if "error" not in said:
        reply = ProviderReply(
            parts=_PARTS.validate_python(_numbered(said["parts"])),
            finish_reason=FinishReason(said["finish_reason"]),
            usage=TokenUsage.model_validate(said["usage"]),
            http_status=said.get("http_status", _GOOD_STATUS),
            served_from=ServedFrom.CASSETTE,
        )
        return reply, ()
    partial = _PARTS.validate_python(_numbered(said.get("partial", ())))
    if said["error"] == LLMCancelled.code:
        return None, partial
    if (kind := kinds().get(said["error"])) is None:
        raise NoLine(f"{said['error']!r} is no error of a provider")
    error = kind(
        said["message"],
        provider=provider,
        model=model,
        **said.get("facts", {}),
        usage=TokenUsage.model_validate(said["usage"]) if "usage" in said else None,
        served_from=ServedFrom.CASSETTE.value,
    )
    return _with_attributes(error, {name: said[name] for name in _ATTRIBUTES if name in said}), partial


def _with_attributes(error: LLMProviderError, values: Mapping[str, bool]) -> LLMProviderError:
    for name, value in values.items():
        setattr(error, name, value)
    return error


def _harmless(parts: Parts, redact: Redact) -> Parts:
    """Return parts without secrets and signatures; calls are named by their order, as clients do."""
    done: list[TextPart | ToolCallPart | ThinkingPart] = []
    calls = 0
    for part in parts:
        if isinstance(part, ToolCallPart):
            arguments = _scrubbed(part.arguments, redact)
            done.append(ToolCallPart(id=f"call_{calls}", name=part.name, arguments=arguments))
            calls += 1
        else:
            done.append(type(part)(text=redact(part.text)))
    return tuple(done)


def _dumped_parts(parts: Parts) -> JsonValue:
    dumped = (part.model_dump(mode="json").items() for part in parts)
    return [{name: value for name, value in part if name not in _OF_THE_PROVIDER} for part in dumped]


def _numbered(parts: Any) -> list[Any]:  # JSON
    """Return parts whose calls have an id again."""
    numbers = iter(range(len(parts)))
    return [
        {**part, "id": f"call_{next(numbers)}"} if part["type"] == "tool_call" else part for part in parts
    ]


def _counts(usage: TokenUsage) -> JsonValue:
    counts: JsonValue = usage.model_dump(exclude_none=True)
    return counts


def _kept_facts(error: LLMProviderError) -> dict[str, JsonValue]:
    """Return the facts that are values of JSON: a status, a wait, a word."""
    return {
        name: value
        for name, value in error.facts.items()
        if name not in _OWN_FACTS and isinstance(value, str | int | float)
    }


def _scrubbed(value: Any, redact: Redact) -> Any:  # JSON
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {name: _scrubbed(each, redact) for name, each in value.items()}
    return [_scrubbed(each, redact) for each in value] if isinstance(value, list | tuple) else value


def _dumped(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, which a file of text cannot hold
        return json.dumps(value, sort_keys=True)
    return text


def _descendants(kind: type[LLMProviderError]) -> Iterator[type[LLMProviderError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)
