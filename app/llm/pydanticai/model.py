"""A PydanticAI model whose every request is routed, recorded and replayable: the service decides who answers."""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property, partial
from typing import Any, Protocol

from pydantic import JsonValue, ValidationError
from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import (
    CompletedStreamedResponse,
    Model,
    ModelRequestParameters,
    StreamedResponse,
    check_allow_model_requests,
)
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.settings import ModelSettings, merge_model_settings
from pydantic_ai.usage import RequestUsage

from app.llm.candidates import Candidate
from app.llm.checks import Check
from app.llm.errors import LLMInvalidRequest, LLMNoCandidate, LLMProviderError
from app.llm.fingerprint import prompt_sha256
from app.llm.needs import needs_by_provider
from app.llm.pydanticai.answers import model_response
from app.llm.pydanticai.checking import DeclaredCheck
from app.llm.pydanticai.failures import model_error
from app.llm.pydanticai.internals import get_current_run_context
from app.llm.pydanticai.lanes import Lane, ablest, meet
from app.llm.pydanticai.settings import request_fields, warn_about_unhonoured
from app.llm.pydanticai.spans import name_answer, request_span
from app.llm.pydanticai.steps import (
    agent_facts,
    agreed,
    answered_before,
    named_by,
    note_answer,
    remedy_named,
    step_facts,
    step_key,
)
from app.llm.pydanticai.streams import LiveStreamedResponse
from app.llm.streams import LLMStream
from app.llm.types import (
    CacheMode,
    LLMCallContext,
    LLMConstraints,
    LLMProfile,
    LLMProvider,
    LLMRequest,
    LLMResponse,
)

SYSTEM = "signalbox"


class ChatService(Protocol):
    """What the model needs of `LLMService`."""

    async def chat(
        self, request: LLMRequest, *, context: LLMCallContext | None = None, check: Check | None = None
    ) -> LLMResponse:
        """Return the answer, live, replayed or from the cache."""
        ...

    def stream(self, request: LLMRequest, *, context: LLMCallContext | None = None) -> LLMStream:
        """Return the same call as a stream."""
        ...

    def candidates(self, *, profile: LLMProfile | None, model: str | None) -> tuple[Candidate, ...]:
        """Return the pinned candidate, or without a pin those that the profile lists, in order."""
        ...


class PydanticAiLiteLLMModel(Model[Any]):
    """An agent's model: `Agent(PydanticAiLiteLLMModel(llm, profile="balanced"), output_type=Invoice)`.

    Each request of the agent is one call of the service. After the first answer of a run, the later requests of the
    run prefer the candidate that gave it. The answer carries its provenance in `ModelResponse.metadata`
    (`llm_run_id`, `served_from`, `original_usage`, `route`) and the sends that failed in `failed_attempts`.

    Whom a request belongs to is said by `context`, by `llm_` model settings or by the metadata of the agent run
    (`workspace_id`, `pipeline_run_id`, `stage`, `idempotency_key`); two that disagree are refused. With a key, a run
    that is repeated replays the steps that were finished, whoever answered them: what the agent asks must be the same,
    the candidates may be others by then. Its prompts must not hold a clock or random text, and two runs under one key
    need agents of different names.
    """

    def __init__(  # noqa: PLR0913  # all but the first have a default
        self,
        llm: ChatService,
        *,
        profile: LLMProfile | str = LLMProfile.BALANCED,
        model: str | None = None,
        context: Callable[[RunContext[Any]], LLMCallContext] | None = None,
        constraints: LLMConstraints | None = None,
        cache: CacheMode | str | None = None,
        name: str | None = None,
        settings: ModelSettings | None = None,
        fallback_on_invalid_output: bool = False,
    ) -> None:
        """Make the model; nothing is asked of `llm` before the first request.

        Args:
            llm: The service that routes, sends and records.
            profile: Which candidates serve it: `fast`, `balanced` or `advanced`.
            model: Pins one candidate as `provider:model`.
            context: Tells from the agent's run whom a request belongs to.
            constraints: Limits on the choice of candidates.
            cache: `use`, `refresh` or `bypass`. Unset: the request's default.
            name: Stands in derived keys for an agent that has no name.
            settings: Defaults below the agent's own; `LLMModelSettings` lists ours.
            fallback_on_invalid_output: Whether output and tool arguments are held to the schemas that the agent
                declares, so that what does not fit them is an attempt that failed and the next candidate is asked.
                Else PydanticAI asks the same candidate again, as it does with streams in any case: what was told
                of an answer cannot be taken back.

        Raises:
            ValueError: There is no such profile or cache mode.
        """
        super().__init__(settings=settings)
        self._llm = llm
        self._context_of = context
        self._name = name
        self._checks = fallback_on_invalid_output
        self._defaults: dict[str, Any] = {
            "profile": LLMProfile(profile),
            "model": model,
            "constraints": constraints or LLMConstraints(),
            "cache": CacheMode.USE if cache is None else CacheMode(cache),
        }
        self._warned: set[str] = set()
        self._lanes_of: tuple[tuple[Candidate, ...], list[Lane]] = ((), [])
        self._ablest: Lane | None = None

    @property
    def model_name(self) -> str:
        """The pinned candidate, else the profile; an answer names the model that gave it."""
        return str(self._defaults["model"] or self._defaults["profile"])

    @property
    def system(self) -> str:
        """Who routes; an answer names the provider that gave it."""
        return SYSTEM

    @cached_property
    def profile(self) -> ModelProfile:
        """What holds for every provider that may answer."""
        return meet(self._lanes(self._candidates(self._defaults)))

    def prepare_request(
        self, model_settings: ModelSettings | None, model_request_parameters: ModelRequestParameters
    ) -> tuple[ModelSettings | None, ModelRequestParameters]:
        """Return both as they are: each lane prepares them under its own profile."""
        return model_settings, model_request_parameters

    def prepare_messages(
        self,
        messages: list[ModelMessage],
        model_request_parameters: ModelRequestParameters | None = None,  # noqa: ARG002  # the base's signature
    ) -> list[ModelMessage]:
        """Return them as they are: each lane prepares them under its own profile."""
        return messages

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Return the answer of the candidate that the router chose.

        Raises:
            ModelAPIError: A provider failed, after every retry and fallback, by PydanticAI's categories.
            ContentFilterError: A provider filtered the prompt or the answer.
            LLMError: The contract or the ledger; another model would not help.
            UserError: The agent uses a part, an output mode or an `llm_` setting that is not supported.
            RuntimeError: `pydantic_ai.models.ALLOW_MODEL_REQUESTS` is off; replays count as requests too.
        """
        run = get_current_run_context()
        return await self._answer(messages, model_settings, model_request_parameters, run)

    async def count_tokens(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> RequestUsage:
        """Return about how many tokens the messages, tools and schemas of a request take; nothing is sent.

        It is the estimate by which the router excludes windows that are too small: about a token for three bytes,
        high rather than low, and that of the lane where it is highest. A request that would be replayed counts too.

        Raises:
            LLMInvalidRequest: No candidate could serve this request.
            UserError: As in `request`.
        """
        merged = merge_model_settings(self.settings, model_settings) or ModelSettings()
        request = self._request(messages, merged, model_request_parameters, get_current_run_context(), None)
        needs = needs_by_provider(request).values()
        return RequestUsage(input_tokens=max(need.input_tokens_estimate for need in needs))

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Yield the answer as it arrives; a replay or a hit, which is there as a whole, part by part.

        Raises:
            AgentRunError: As in `request`: before the first event, and within the stream, which then is final.
        """
        run = run_context or get_current_run_context()
        request, context = self._asked(messages, model_settings, model_request_parameters, run)
        step = step_facts(request, context)
        async with self._llm.stream(request, context=context) as stream:
            with self._told():
                first = await anext(stream)
            if stream.whole is not None:
                yield CompletedStreamedResponse(
                    _answered(stream.whole, step),
                    model_request_parameters=model_request_parameters,
                    replay_events=True,
                )
            else:
                yield LiveStreamedResponse(
                    model_request_parameters,
                    stream=stream,
                    first=first,
                    told=partial(self._told, in_stream=True),
                    step=step,
                )

    async def _answer(
        self,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        params: ModelRequestParameters,
        run: RunContext[Any] | None,
    ) -> ModelResponse:
        request, context = self._asked(messages, settings, params, run)
        with self._told():
            check = DeclaredCheck(params) if self._checks else None
            response = await self._llm.chat(request, context=context, check=check)
        note_answer(run)
        return _answered(response, step_facts(request, context))

    def _asked(
        self,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        params: ModelRequestParameters,
        run: RunContext[Any] | None,
    ) -> tuple[LLMRequest, LLMCallContext]:
        check_allow_model_requests()
        merged = merge_model_settings(self.settings, settings) or ModelSettings()
        context = self._correlation(merged, run)
        request = self._request(messages, merged, params, run, context.idempotency_key)
        warn_about_unhonoured(merged, model=self.model_name, warned=self._warned)
        return request, context.model_copy(update={"idempotency_key": None})

    @contextmanager
    def _told(self, *, in_stream: bool = False) -> Iterator[None]:
        try:
            with remedy_named():
                yield
        except LLMProviderError as error:
            raise model_error(error, asked=self.model_name, in_stream=in_stream) from error

    def _correlation(self, settings: ModelSettings, run: RunContext[Any] | None) -> LLMCallContext:
        told = self._context_of(run) if self._context_of and run else LLMCallContext()
        return agreed(
            (
                ("context=", told),
                ("the model settings", named_by("the model settings", settings, prefix="llm_")),
                ("the run's metadata", named_by("the run's metadata", run.metadata if run else None)),
            )
        )

    def _request(
        self,
        messages: list[ModelMessage],
        settings: ModelSettings,
        params: ModelRequestParameters,
        run: RunContext[Any] | None,
        key: str | None,
    ) -> LLMRequest:
        fields = {**self._defaults, **request_fields(settings)}
        candidates = self._candidates(fields)
        fields |= _preferring(answered_before(messages, run, candidates), fields)
        said = fields.get("metadata", {})
        fields["metadata"] = {**agent_facts(run), **said} if isinstance(said, dict) else said
        if key is not None:
            fields["idempotency_key"] = step_key(key, run, name=self._name)
        try:
            renderings = {
                lane.provider_id: lane.render(messages, settings, params) for lane in self._lanes(candidates)
            }
            usual = next(iter(renderings.values()))
            variants = {provider: other for provider, other in renderings.items() if other != usual}
            if key is not None:
                fields["asked_sha256"] = self._asked_sha256(messages, settings, params, fields)
            return LLMRequest(**{**fields, **dict(usual), "variants": variants})
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False)
            told = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
            raise LLMInvalidRequest(f"no candidate can serve this request: {told}") from None

    def _asked_sha256(
        self,
        messages: list[ModelMessage],
        settings: ModelSettings,
        params: ModelRequestParameters,
        fields: dict[str, Any],
    ) -> str:
        """Return the hash of what the agent asks: a run goes on under its key with other candidates, too."""
        if self._ablest is None:
            self._ablest = ablest()
        return prompt_sha256(
            LLMRequest(**{**fields, **dict(self._ablest.render(messages, settings, params))})
        )

    def _candidates(self, fields: dict[str, Any]) -> tuple[Candidate, ...]:
        try:
            profile = LLMProfile(fields["profile"])
        except ValueError:
            known = ", ".join(LLMProfile)
            raise LLMInvalidRequest(f"no profile {fields['profile']!r}: write one of {known}") from None
        pinned = fields["model"]
        if not isinstance(pinned, str | None):
            raise LLMInvalidRequest(f"llm_model is {pinned!r}: write provider:model")
        found = self._llm.candidates(profile=profile, model=pinned)
        if pinned and fields["constraints"].allow_fallback:
            found += self._llm.candidates(profile=profile, model=None)
        if not found:
            raise LLMNoCandidate(f"profile {profile} lists no candidate: set LLM_PROFILE_{profile.upper()}")
        return found

    def _lanes(self, candidates: tuple[Candidate, ...]) -> list[Lane]:
        """Return one lane per provider, in the order in which the providers are listed; those of last time, if equal."""
        known, lanes = self._lanes_of
        if known != candidates:
            by_provider: dict[LLMProvider, list[Candidate]] = {}
            for candidate in candidates:
                by_provider.setdefault(candidate.provider, []).append(candidate)
            lanes = [Lane(provider, listed) for provider, listed in by_provider.items()]
            self._lanes_of = candidates, lanes
        return lanes


def _answered(response: LLMResponse, step: dict[str, JsonValue]) -> ModelResponse:
    made = model_response(response, step)
    name_answer(request_span(), made)
    return made


def _preferring(answered: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that put the candidate which answered before first, others behind it as far as allowed."""
    if answered is None:
        return {}
    limits: LLMConstraints = fields["constraints"]
    if limits.allow_fallback is None and fields["model"] is None:
        limits = limits.model_copy(update={"allow_fallback": True})
    return {"model": answered, "constraints": limits}
