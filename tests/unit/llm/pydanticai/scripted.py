"""A service that answers from a script: what the agents' tests hold against what was asked."""

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel
from pydantic_ai.messages import ModelResponse

from app.llm.candidates import Candidate, ProviderCaps
from app.llm.deltas import Answering, Delta, Tell, TextDelta, deltas_of
from app.llm.fingerprint import prompt_sha256
from app.llm.messages import TextPart, ThinkingPart, ToolCallPart
from app.llm.responses import with_stable_ids
from app.llm.streams import LLMStream
from app.llm.types import (
    NO_USAGE,
    Attempt,
    FinishReason,
    LLMCallContext,
    LLMProfile,
    LLMProvider,
    LLMRequest,
    LLMResponse,
    ServedFrom,
    TokenUsage,
)

OLLAMA, GEMINI = LLMProvider.OLLAMA, LLMProvider.GEMINI
MODELS = {OLLAMA: "llama3.2", GEMINI: "gemini-2.5-flash"}
USAGE = TokenUsage(input_tokens=10, output_tokens=5)
STARTED = datetime(2026, 3, 1, 12, tzinfo=UTC)


class City(BaseModel):
    """A city."""

    name: str
    country: str


PARIS = {"name": "Paris", "country": "France"}


def candidate(provider: LLMProvider, **caps: Any) -> Candidate:
    gemini = provider is GEMINI
    facts = {
        "supports_tools": True,
        "supports_forced_tool_choice": gemini,
        "supports_json": True,
        "supports_json_schema": True,
        **dict.fromkeys(
            ("supports_vision", "supports_documents", "supports_audio", "supports_video"), gemini
        ),
        "max_context_tokens": 1_000_000 if gemini else 8192,
        "assumed": False,
    }
    return Candidate(
        provider=provider,
        model=MODELS[provider],
        caps=ProviderCaps(**{**facts, **caps}),
        local=not gemini,
        identity=MODELS[provider],
    )


BOTH = (candidate(OLLAMA), candidate(GEMINI))


def call(name: str, arguments: dict[str, Any], *, signature: str | None = None) -> ToolCallPart:
    return ToolCallPart(id="as the provider made it", name=name, arguments=arguments, signature=signature)


def answer(
    *parts: str | ToolCallPart | ThinkingPart,
    provider: LLMProvider = OLLAMA,
    served_from: ServedFrom = ServedFrom.LIVE,
    usage: TokenUsage = USAGE,
    cost_usd: float | None = 0.0,
    run_id: str = "run-1",
    attempts: tuple[Attempt, ...] = (),
) -> LLMResponse:
    typed = tuple(TextPart(text=part) if isinstance(part, str) else part for part in parts)
    calls = any(isinstance(part, ToolCallPart) for part in typed)
    return LLMResponse(
        parts=typed,
        finish_reason=FinishReason.TOOL_CALLS if calls else FinishReason.STOP,
        usage=usage if served_from is ServedFrom.LIVE else NO_USAGE,
        original_usage=usage,
        provider=provider,
        model=MODELS[provider],
        run_id=run_id,
        served_from=served_from,
        route=({"provider": provider.value, "kept": True},),
        attempts=attempts,
        cost_usd=cost_usd,
    )


def failed_attempt(provider: LLMProvider = OLLAMA, *, usage: TokenUsage | None = None) -> Attempt:
    return Attempt(
        ordinal=1,
        provider=provider,
        model=MODELS[provider],
        candidate_sha256="a",
        status="FAILED",
        started_at=STARTED,
        finished_at=STARTED + timedelta(milliseconds=40),
        latency_ms=40,
        error_code="unavailable",
        http_status=503,
        usage=usage or TokenUsage(),
    )


def in_pieces(delta: Delta) -> list[Delta]:
    """Return a text as two deltas."""
    if isinstance(delta, TextDelta) and len(delta.text) > 1:
        return [TextDelta(delta.text[:1]), TextDelta(delta.text[1:])]
    return [delta]


class ScriptedService:
    """Answers each request with the next answer of the script; an exception among them is raised."""

    def __init__(self, *script: LLMResponse | Exception, candidates: tuple[Candidate, ...] = BOTH) -> None:
        self.script = list(script)
        self.listed = candidates
        self.requests: list[LLMRequest] = []
        self.checks: list[Any] = []
        self.contexts: list[LLMCallContext | None] = []

    async def chat(
        self, request: LLMRequest, *, context: LLMCallContext | None = None, check: Any = None
    ) -> LLMResponse:
        self.requests.append(request)
        self.checks.append(check)
        self.contexts.append(context)
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        parts = with_stable_ids(step.parts, prompt_sha256(request))  # as the service names them
        return step.model_copy(update={"parts": parts})

    def stream(self, request: LLMRequest, *, context: LLMCallContext | None = None) -> LLMStream:
        """Give a live answer delta by delta, unless there are none; others as a whole."""

        async def work(tell: Tell) -> LLMResponse:
            response = await self.chat(request, context=context)
            if response.served_from is ServedFrom.LIVE:
                await tell(Answering(response.provider, response.model))
                for delta in deltas_of(response.parts):
                    for piece in in_pieces(delta):
                        await tell(piece)
            return response

        return LLMStream(work, remember=lambda _: None)

    def candidates(self, *, profile: LLMProfile | None, model: str | None) -> tuple[Candidate, ...]:
        assert profile is not None
        if model is None:
            return self.listed
        return tuple(listed for listed in self.listed if listed.name == model)


PARIS_JSON = '{"name": "Paris", "country": "France"}'


def gemini_only(*script: Any) -> ScriptedService:
    """Return a service that has the lane of Gemini alone."""
    return ScriptedService(*script, candidates=(candidate(GEMINI),))


def last(result: Any) -> ModelResponse:
    """Return the last answer of a run."""
    response = result.all_messages()[-1]
    if not isinstance(response, ModelResponse):
        response = result.all_messages()[-2]
    assert isinstance(response, ModelResponse)
    return response
