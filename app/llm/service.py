"""The only public entry point: whatever is asked for, one call after another goes the path of `story.py`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import JsonValue

from app.llm.calls import Call, begin
from app.llm.candidates import Candidate, RouteDecision
from app.llm.checks import Check
from app.llm.context import stage_of, workspace_of
from app.llm.deltas import Tell
from app.llm.effects import Effects, Work
from app.llm.errors import (
    LLMContractError,
    LLMKeyConflict,
)
from app.llm.ports import Effect
from app.llm.stages import Stages
from app.llm.story import Story, Wiring
from app.llm.streams import LLMStream, Streaming
from app.llm.structured.wanted import Checked, wanted
from app.llm.telemetry import Whose
from app.llm.tracing import CallSpan
from app.llm.types import LLMCallContext, LLMProfile, LLMRequest, LLMResponse

T = TypeVar("T")


class LLMService(Stages):
    """Routes, sends, records and replays. Async only; one instance serves a process."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._repo = wiring.repo
        self._clock = wiring.clock
        self._telemetry = wiring.telemetry
        self._settings = wiring.settings
        self._story = Story(wiring)
        self._effects = Effects(wiring)
        self._streaming = Streaming()

    async def chat(
        self, request: LLMRequest, *, context: LLMCallContext | None = None, check: Check | None = None
    ) -> LLMResponse:
        """Return an answer: replayed, from the cache, or live from the first candidate that can give one.

        Args:
            request: What is wanted.
            context: Whom the call belongs to, where the request's metadata does not say.
            check: What an answer must pass, a stored one too, before it counts; `structured` makes one of a type.

        Raises:
            LLMContractError: The call itself is wrong, or its key cannot be had; nothing was sent.
            LLMProviderError: No candidate answered; `attempts` and `run_id` tell the story.
            LLMLedgerError: The database is away; nothing was sent.
        """
        return await self._chat(request, context, check=check)

    def stream(self, request: LLMRequest, *, context: LLMCallContext | None = None) -> LLMStream:
        """Return the same call as a stream: deltas as they arrive, then the `LLMResponse`.

        It begins when it is entered (`async with`) or iterated over, and raises there what `chat` raises. Until the
        first delta, retries and fallbacks are as in `chat`; after it an error is final. Leaving early cancels it.
        """

        async def answering(tell: Tell) -> LLMResponse:
            return await self._chat(request, context, tell=tell)

        return LLMStream(answering, remember=self._streaming.add)

    async def structured(
        self, of: type[T], request: LLMRequest, *, context: LLMCallContext | None = None, tries: int = 2
    ) -> Checked[T]:
        """Return an answer as a valid `of`, a Pydantic model or any other type that a `TypeAdapter` takes.

        A candidate whose answer is not valid is told why and asked again, at most `tries` times in all; then the next
        one is asked the original request.

        Raises:
            LLMInvalidOutput: No answer was valid; `rejected` holds them all.
            LLMError: As in `chat`; `LLMKeyConflict` also where the key's stored answer is no valid `of`.
        """
        shape = wanted(of, tries=tries)
        return shape.checked(await self.chat(shape.asked(request), context=context, check=shape))

    async def once(
        self,
        key: str,
        name: str,
        arguments: Mapping[str, JsonValue],
        work: Work,
        *,
        context: LLMCallContext | None = None,
        undone: tuple[type[Exception], ...] = (),
        force_new_execution: bool = False,
    ) -> JsonValue:
        """Return what `work` returns, which is run once under this key: later callers get what it returned then.

        For what a stage does beside its calls, such as sending an e-mail. The ledger holds it as a run of the provider
        `tool` without sends and cost. A process that dies leaves it to LLM_ON_ABANDONED once its lease of
        LLM_LEASE_GRACE_S is over, which is renewed while the work goes on. Work that is cancelled is left to it at once:
        a thread of it, or whom it asked, may finish all the same.

        Args:
            key: Its own; a call's key is another one.
            name: What the work is called in the ledger, 255 characters at most.
            arguments: What it is about, as JSON; a repetition must say the same.
            work: Does it, and returns JSON; it leaves the event loop free, or the lease cannot be renewed. Whatever comes
                out, live too, has been through JSON.
            context: Whom it belongs to, where no scope says so.
            undone: Exceptions of `work` which mean that it did nothing: their code on the row is `cancelled`, as is that
                of a caller who went away before the work began. The key is free again.
            force_new_execution: Run it again, whatever the key holds for these arguments.

        Raises:
            LLMContractError: The key cannot be had, or holds other arguments; nothing was run. `LLMInvalidRequest` also
                after the work, with `possibly_paid`, if what it returned is no JSON: LLM_ON_ABANDONED decides, as above.
            LLMFenced: Another run took the key over and has no result; `answer` is the own one.
            LLMLedgerError: The database is away; nothing was run.
            Exception: What `work` raised, after which the key is free again and the next caller runs it, whatever it had
                done before it raised.
        """
        effect = Effect(name=name, arguments=arguments)
        return await self._effects.once(
            effect, work, key=key, context=context, undone=undone, force=force_new_execution
        )

    def joined(self, session: Any) -> "LLMService":
        """Return a view whose ledger writes go through the caller's `AsyncSession`, and are committed by the caller.

        Weaker: others see STARTED only after the commit; on SQLite the write lock is held while the provider
        works; two keys in opposite order can deadlock; a rollback after a paid call loses its record. A stream uses the
        session from a task of its own until it has ended.

        Raises:
            LLMContractError: Runs are not persisted.
        """
        if self._wiring.join is None:
            raise LLMContractError("joined() needs persisted runs (LLM_PERSIST_RUNS=true)")
        return LLMService(
            replace(
                self._wiring,
                repo=self._wiring.join(session),
                breaker=self._story.breaker,
                knowledge=self._story.knowledge,
                rates=self._story.rates,
            )
        )

    def explain(self, request: LLMRequest) -> RouteDecision:
        """Return the route that the request would take; nothing is sent or recorded."""
        return self._story.router.route(
            request,
            caps=self._story.knowledge.catalog,
            health=self._story.breaker.health(),
            stage=stage_of(request),
        )

    def candidates(
        self, *, profile: LLMProfile | None = None, model: str | None = None
    ) -> tuple[Candidate, ...]:
        """Return the candidates of a profile in its order, or the pinned one."""
        if model is not None:
            return (self._story.knowledge.catalog.pinned(model),)
        return self._story.knowledge.catalog.listed(profile or self._settings.default_profile)

    async def warm_up(self) -> None:
        """Load what the first send would load (LiteLLM, about 3 s in a thread); idempotent."""
        await self._wiring.client.warm_up()

    async def release(self, run_id: str, *, workspace_id: str | None = None) -> bool:
        """Declare the owner of a STARTED run dead and free its key; False when the workspace has no such run.

        Args:
            run_id: The whole id.
            workspace_id: Whose run it is; None: as `scope` or LLM_DEFAULT_WORKSPACE says. Only the operator's
                `signalbox runs release` reaches every workspace.

        Raises:
            LLMWorkspaceMissing: Nothing names a workspace.
            LLMWorkspaceConflict: The argument and the `scope` name two.
        """
        workspace = workspace_of(workspace_id, default_workspace=self._settings.default_workspace)
        return await self._repo.release(run_id, workspace)

    async def drain(self) -> None:
        """Wait until nothing is written in the background any more."""
        await self._repo.drain()

    async def close(self) -> None:
        """End open streams, drain, then close connections; idempotent. A joined view leaves its service's open."""
        await self._streaming.end()
        await self._repo.close()
        if not self._repo.inline:
            await self._wiring.client.close()

    # -- pieces

    async def _chat(
        self,
        request: LLMRequest,
        context: LLMCallContext | None,
        *,
        tell: Tell | None = None,
        check: Check | None = None,
    ) -> LLMResponse:
        span = self._telemetry.call_started()
        started_s, call = self._clock.monotonic_s(), None
        try:
            call = await begin(
                request,
                context,
                settings=self._settings,
                clock=self._clock,
                new_id=self._wiring.new_id,
                tell=tell,
                check=check,
            )
            response = await self._story.answer(call)
        except BaseException as error:
            self._ended(request, call, error, started_s, span)
            if isinstance(error, LLMKeyConflict) and call is not None:
                raise await self._story.explained(call, error) from None
            raise
        self._ended(request, call, response, started_s, span)
        return response

    def _ended(
        self,
        request: LLMRequest,
        call: Call | None,
        outcome: LLMResponse | BaseException,
        started_s: float,
        span: CallSpan | None,
    ) -> None:
        whose = Whose(call.run_id, call.context.workspace_id, call.context.stage) if call else Whose()
        self._telemetry.call_ended(
            outcome,
            span=span,
            request=request,
            profile=self._story.router.profile_of(request, whose.stage),
            latency_ms=(self._clock.monotonic_s() - started_s) * 1000,
            whose=whose,
        )
