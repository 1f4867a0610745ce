"""Sends one attempt to one provider through LiteLLM: within a slot and a deadline, at most one request, never a retry.

LiteLLM speaks the dialects and nothing else. Its retries, fallbacks, caches, callbacks, timeouts, HTTP clients and
error classes are not used; how much of it a call goes through is the business of its lane (`wire/`).
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.core.deadlines import Deadlines, Within
from app.llm.adapting import strain
from app.llm.breaker import FAIR_SHARE
from app.llm.candidates import Candidate
from app.llm.errors import LLMAuth, LLMInternal, LLMProviderError, LLMTimeout
from app.llm.limits import Limits, Slot
from app.llm.ports import Listener, ProviderReply
from app.llm.providers import known
from app.llm.redaction import Redactor
from app.llm.settings import LLMSettings
from app.llm.telemetry import Telemetry
from app.llm.types import LLMRequest
from app.llm.wire.answers import reply_of
from app.llm.wire.errors import map_error
from app.llm.wire.exchange import GOOD, Exchange
from app.llm.wire.loading import load_litellm
from app.llm.wire.outlet import Outlet

if TYPE_CHECKING:
    from app.llm.wire.lanes import Lanes

MAX_REPLY_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class _Way:
    """How one send goes: through which slot, within what time, told to whom."""

    slot: Slot
    limit: Within
    timeout_s: float
    on_send: Callable[[float], None]
    outlet: Outlet | None

    def out_of_time(self) -> TimeoutError:
        return self.outlet.out_of_time() if self.outlet else TimeoutError()


class LiteLLMClient:
    """The `ChatClient` of production. Usable from several event loops; each gets its own connections."""

    def __init__(
        self,
        *,
        settings: LLMSettings,
        limits: Limits,
        redact: Callable[[str], str] | None = None,
        unfit: Callable[[str], None] | None = None,
        warm: Callable[[], Any] | None = None,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        """Take what a send needs; nothing is loaded or opened yet.

        Args:
            settings: Where the providers are, their keys, the lane.
            limits: Slots for sends.
            redact: Takes secrets out of the text of errors.
            unfit: Told, once, why the installed LiteLLM has no lane `dialect`; None writes the event.
            warm: Loads LiteLLM.
            max_reply_bytes: Bytes that the body of an answer may have.
        """
        self._settings = settings
        self._limits = limits
        self._redact = redact or Redactor(secrets=settings.secrets())
        self._unfit = unfit or Telemetry().lane_unfit
        self._warm = warm or load_litellm
        self._max_reply_bytes = max_reply_bytes
        self._lanes: Lanes | None = None
        self._lanes_lock = threading.Lock()
        self._patience_s = FAIR_SHARE * min(settings.attempt_timeout_s, settings.default_timeout_s)
        self._deadlines = Deadlines()

    async def send(
        self,
        request: LLMRequest,
        candidate: Candidate,
        *,
        run_id: str,
        workspace_id: str,
        timeout_s: float,
        on_send: Callable[[float], None],
        listener: Listener | None = None,
    ) -> ProviderReply:
        """Return the candidate's answer; as in `ChatClient.send`."""
        slot = self._limits.slot(candidate.provider, run_id, workspace_id)
        limit = self._deadlines.within(timeout_s)
        idle_s = self._settings.stream_idle_timeout_s
        outlet = None if listener is None else Outlet(listener, limit, idle_s=idle_s)
        outcome = await self._outcome(request, candidate, _Way(slot, limit, timeout_s, on_send, outlet))
        had_s = timeout_s - slot.waited_ms / 1000
        slot.report(strain(outcome, had_s=had_s, patience_s=self._patience_s))
        if isinstance(outcome, LLMProviderError):
            # Here, where no exception is handled and no frame knows the key: chains and tracebacks get logged.
            raise outcome.with_traceback(None) from None
        return outcome

    async def warm_up(self, *, timeout_s: float | None = None) -> None:
        """Load LiteLLM, about 3 s of CPU in a thread; as in `ChatClient.warm_up`."""
        if self._lanes is None:
            await self._opened(timeout_s)

    async def close(self) -> None:
        """Close the connections of every event loop; idempotent."""
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            await lanes.close()

    async def _outcome(
        self,
        request: LLMRequest,
        candidate: Candidate,
        way: "_Way",
    ) -> ProviderReply | LLMProviderError:
        provider = known()[candidate.provider]
        if not provider.usable(self._settings):
            return LLMAuth(
                f"{candidate.name} has no credentials", provider=candidate.provider, model=candidate.model
            )
        options = provider.call_options(self._settings, candidate.model, request)
        waited_ms: float | None = None
        exchange = Exchange(max_bytes=self._max_reply_bytes, on_send=lambda: way.on_send(waited_ms or 0.0))
        try:
            lane = (self._lanes or await self._opened()).of[candidate.provider]
            with way.limit:
                async with way.slot as waited_ms:
                    if way.outlet is None:
                        answer = await lane.send(candidate, options, exchange)
                    else:
                        await lane.stream(candidate, options, exchange, way.outlet)
                        answer = way.outlet.answer()
            return reply_of(answer, exchange, request, candidate, window=options.get("num_ctx"))
        except Exception as error:  # noqa: BLE001  # whatever a library raises becomes one of our errors
            if waited_ms is None and way.limit.expired:
                return self._no_slot(candidate, way.timeout_s)
            cause = way.out_of_time() if way.limit.expired else exchange.failure or error
            return cause if isinstance(cause, LLMProviderError) else self._failed(cause, candidate, exchange)

    def _no_slot(self, candidate: Candidate, timeout_s: float) -> LLMTimeout:
        limit = f"LLM_{candidate.provider.upper()}_CONCURRENCY_LIMIT or LLM_CONCURRENCY_LIMIT"
        return LLMTimeout(
            f"{candidate.name} was not asked, nothing was sent: no slot was free within {timeout_s:.1f} s ({limit})",
            provider=candidate.provider,
            model=candidate.model,
        )

    def _failed(self, error: BaseException, candidate: Candidate, exchange: Exchange) -> LLMProviderError:
        failed = map_error(
            error,
            provider=candidate.provider,
            model=candidate.model,
            api_base=known()[candidate.provider].api_base(self._settings),
            status=exchange.status,
            headers=exchange.headers,
            body_text=exchange.body.decode("utf-8", "replace"),
            redact=self._redact,
            written=exchange.written,
        )
        return failed.with_facts(usage=exchange.usage) if exchange.status in GOOD else failed

    async def _opened(self, timeout_s: float | None = None) -> "Lanes":
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.to_thread(self._open)  # goes on in its thread, for the next call
        except TimeoutError:
            raise LLMTimeout(
                "no provider was asked, nothing was sent: LiteLLM was still being loaded; call warm_up() at start"
            ) from None
        except Exception as error:  # noqa: BLE001  # whatever a library raises becomes one of our errors
            text = f"LiteLLM cannot be loaded ({type(error).__name__}: {error})"
            raise LLMInternal(self._redact(text)) from None

    def _open(self) -> "Lanes":
        with self._lanes_lock:
            lanes = self._lanes
            if lanes is None:
                library = self._warm()
                from app.llm.wire.lanes import Lanes  # noqa: PLC0415  # loads aiohttp and httpx, with LiteLLM

                lanes = self._lanes = Lanes.opened(self._settings, library, self._unfit)
            return lanes
