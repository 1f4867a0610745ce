"""Sends one attempt to one provider through LiteLLM: within a slot and a deadline, at most one request, never a retry.

LiteLLM speaks the dialects and nothing else. Its retries, fallbacks, caches, callbacks, timeouts, HTTP clients and
error classes are not used; what it does not say about an answer is read from the wire (`transport_litellm`).
"""

import asyncio
import logging
import os
import ssl
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import ip_address
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from app.llm.candidates import Candidate
from app.llm.errors import LLMAuth, LLMProviderError, LLMTimeout
from app.llm.errors_litellm import map_error
from app.llm.exchange_litellm import GOOD, Exchange, recorded
from app.llm.limits import Limits
from app.llm.ports import ProviderReply
from app.llm.providers import gemini, ollama
from app.llm.redaction import Redactor
from app.llm.replies_litellm import RawReply, reply_of
from app.llm.settings import LLMSettings
from app.llm.types import LLMProvider, LLMRequest

if TYPE_CHECKING:
    from app.llm.transport_litellm import OneRequestHTTP

MAX_REPLY_BYTES = 16 * 2**20

_MODULES: Mapping[LLMProvider, ModuleType] = {LLMProvider.OLLAMA: ollama, LLMProvider.GEMINI: gemini}
_IMPORT_SWITCHES = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches a price list, and again if that fails
    "LITELLM_MODE": "PRODUCTION",  # else it loads the .env file of the working directory into the process
}
_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")
_import_lock = threading.Lock()


class LiteLLMClient:
    """The `ChatClient` of production. Usable from several event loops; each gets its own connections."""

    def __init__(
        self,
        *,
        settings: LLMSettings,
        limits: Limits,
        redact: Callable[[str], str] | None = None,
        warm: Callable[[], Any] | None = None,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._redact = redact or Redactor(secrets=settings.secrets())
        self._warm = warm or load_litellm
        self._max_reply_bytes = max_reply_bytes
        self._engine: _Engine | None = None
        self._engine_lock = threading.Lock()

    async def send(
        self,
        request: LLMRequest,
        candidate: Candidate,
        *,
        run_id: str,
        timeout_s: float,
        on_send: Callable[[float], None],
    ) -> ProviderReply:
        """Return the candidate's answer; as in `ChatClient.send`."""
        outcome = await self._outcome(request, candidate, run_id, timeout_s, on_send)
        if isinstance(outcome, LLMProviderError):
            # Here, where no exception is handled and no frame knows the key: chains and tracebacks get logged.
            raise outcome.with_traceback(None) from None
        return outcome

    async def warm_up(self) -> None:
        """Load LiteLLM, about 3 s of CPU in a thread; the first `send` does it otherwise. Idempotent."""
        await self._warmed()

    async def close(self) -> None:
        """Close the connections of every event loop; idempotent."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    async def _outcome(
        self,
        request: LLMRequest,
        candidate: Candidate,
        run_id: str,
        timeout_s: float,
        on_send: Callable[[float], None],
    ) -> ProviderReply | LLMProviderError:
        provider = _MODULES[candidate.provider]
        if not provider.usable(self._settings):
            return LLMAuth(
                f"{candidate.name} has no credentials", provider=candidate.provider, model=candidate.model
            )
        options = provider.call_options(self._settings, candidate.model, request)
        raw = RawReply(candidate.provider)
        waited_ms: float | None = None
        exchange = Exchange(
            max_bytes=self._max_reply_bytes,
            prepare=raw.prepare,
            on_send=lambda: on_send(waited_ms or 0.0),
            authorized=_authorized(options),
        )
        deadline = asyncio.timeout(timeout_s)
        try:
            engine = await self._warmed()
            async with deadline, self._limits.slot(candidate.provider, run_id) as waited_ms:
                response = await engine.send(candidate, options, exchange)
            return reply_of(
                response,
                raw,
                request,
                candidate,
                http_status=exchange.status,
                window=options.get("num_ctx"),
            )
        except LLMProviderError as refusal:
            return refusal
        except Exception as error:  # noqa: BLE001  # whatever LiteLLM raises becomes one of our errors
            if waited_ms is None and deadline.expired():
                return self._no_slot(candidate, timeout_s)
            cause = TimeoutError() if deadline.expired() else exchange.failure or error
            return self._failed(cause, candidate, exchange, raw)

    def _no_slot(self, candidate: Candidate, timeout_s: float) -> LLMTimeout:
        limit = f"LLM_{candidate.provider.upper()}_CONCURRENCY_LIMIT or LLM_CONCURRENCY_LIMIT"
        return LLMTimeout(
            f"{candidate.name} was not asked, nothing was sent: no slot was free within {timeout_s:.1f} s ({limit})",
            provider=candidate.provider,
            model=candidate.model,
        )

    def _failed(
        self, error: BaseException, candidate: Candidate, exchange: Exchange, raw: RawReply
    ) -> LLMProviderError:
        failed = map_error(
            error,
            provider=candidate.provider,
            model=candidate.model,
            api_base=_MODULES[candidate.provider].api_base(self._settings),
            status=exchange.status,
            headers=exchange.headers,
            body_text=exchange.body.decode("utf-8", "replace"),
            redact=self._redact,
            written=exchange.written,
        )
        return failed.with_facts(usage=raw.usage) if exchange.status in GOOD else failed

    async def _warmed(self) -> "_Engine":
        engine = self._engine
        return await asyncio.to_thread(self._start_engine) if engine is None else engine

    def _start_engine(self) -> "_Engine":
        with self._engine_lock:
            if self._engine is None:
                self._engine = _engine(self._settings, self._warm())
            return self._engine


def load_litellm() -> Any:
    """Import LiteLLM, once for all threads, without letting it touch the network, the environment or the logs.

    Takes about 3 s: call it in a thread.
    """
    with _import_lock:
        tokenizers = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ.update(_IMPORT_SWITCHES)
        import litellm  # noqa: PLC0415  # lazy: it costs 3 s and 160 MiB
        from litellm.litellm_core_utils import default_encoding  # noqa: F401, PLC0415  # sets TIKTOKEN_CACHE_DIR

        os.environ.pop("TIKTOKEN_CACHE_DIR", None)
        if tokenizers is not None:
            os.environ["TIKTOKEN_CACHE_DIR"] = tokenizers
        _forget_caching(litellm)
        litellm.suppress_debug_info = True
        litellm.telemetry = False
        for name in _LOGGERS:
            logging.getLogger(name).disabled = True  # they quote prompts, answers and headers
        return litellm


def _forget_caching(litellm: Any) -> None:
    """Undo what the Gemini module does when it is imported: every later call would be logged in a thread."""
    from litellm.llms.vertex_ai.context_caching import vertex_ai_context_caching  # noqa: F401, PLC0415  # lazy

    if litellm.cache is None:
        for callbacks in (litellm.input_callback, litellm.success_callback, litellm._async_success_callback):  # noqa: SLF001
            callbacks[:] = [callback for callback in callbacks if callback != "cache"]


@dataclass(frozen=True, slots=True)
class _Engine:
    """LiteLLM, loaded, with HTTP clients of ours."""

    litellm: Any
    internal_call: ContextVar[bool]
    clients: Mapping[LLMProvider, Any]
    lines: Mapping[LLMProvider, "OneRequestHTTP"]

    async def send(self, candidate: Candidate, options: Mapping[str, Any], exchange: Exchange) -> Any:
        """Return LiteLLM's reading of the answer; the lane of every provider that LiteLLM knows."""
        self._register(options["model"], candidate)
        # Calls within LiteLLM are not logged; any other leaves a task of its logging behind in the event loop.
        token = self.internal_call.set(True)
        try:
            with recorded(exchange):
                return await self.litellm.acompletion(
                    **options, client=self.clients[candidate.provider], num_retries=0, max_retries=0
                )
        finally:
            self.internal_call.reset(token)

    async def close(self) -> None:
        """Close the connections."""
        for line in self.lines.values():
            await line.close()

    def _register(self, name: str, candidate: Candidate) -> None:
        """Make a model known to LiteLLM, which else asks Ollama about it, synchronously, or degrades its requests."""
        if name in self.litellm.model_cost:
            return
        facts = {
            "litellm_provider": name.partition("/")[0],
            "mode": "chat",
            "max_input_tokens": candidate.caps.max_context_tokens,
            "supports_system_messages": True,
            "supports_function_calling": candidate.caps.supports_tools,
            "supports_tool_choice": candidate.caps.supports_forced_tool_choice,
            "supports_response_schema": candidate.caps.supports_json_schema,
            "supports_vision": candidate.caps.supports_vision,
            "supports_reasoning": True,
        }
        self.litellm.model_cost[name] = facts  # first, or register_model itself would ask Ollama
        self.litellm.register_model({name: facts})


def _engine(settings: LLMSettings, litellm: Any) -> _Engine:
    import httpx  # noqa: PLC0415  # with LiteLLM, not before it
    from litellm._internal_context import is_internal_call  # noqa: PLC0415  # as above
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler  # noqa: PLC0415  # as above

    from app.llm.transport_litellm import OneRequestHTTP  # noqa: PLC0415  # as above

    lines = {provider: OneRequestHTTP(**_line(settings, module)) for provider, module in _MODULES.items()}
    clients: dict[LLMProvider, Any] = {}
    for provider, line in lines.items():
        clients[provider] = client = AsyncHTTPHandler(transport=httpx.AsyncBaseTransport())  # refuses all
        client.client = client.client  # hands it over: else a task of LiteLLM's closes it some day
        client.post = line.post
    return _Engine(litellm, is_internal_call, clients, lines)


def _line(settings: LLMSettings, module: ModuleType) -> dict[str, Any]:
    base = urlsplit(module.api_base(settings))
    tls = settings.ca_bundle is not None and base.scheme == "https"
    return {
        "trust_env": not _is_loopback(base.hostname or ""),
        "ssl_context": ssl.create_default_context(cafile=settings.ca_bundle) if tls else None,
    }


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _authorized(options: Mapping[str, Any]) -> bool:
    return "api_key" in options or any(name.lower() == "authorization" for name in options.get("headers", ()))
