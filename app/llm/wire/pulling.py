"""Has Ollama fetch a model, or load one into memory: what a person asks of it before the first call."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from app.llm.endpoints import is_local_url
from app.llm.errors import (
    LLMAuth,
    LLMBadRequest,
    LLMBadResponse,
    LLMModelNotFound,
    LLMProviderError,
    LLMSettingsError,
    LLMTimeout,
    LLMUnavailable,
)
from app.llm.providers import ollama, ollama_says
from app.llm.providers.ollama_says import Progress
from app.llm.settings import LLMSettings
from app.llm.types import LLMProvider
from app.llm.wire.exchange import GOOD, BrokenOff, Exchange, Unreachable, UnusableReply
from app.llm.wire.http import Posted
from app.llm.wire.inquiries import Inquiries
from app.llm.wire.lines import Lines

IDLE_S = 600.0
"""Seconds that a download may say nothing: a large file is checked in silence."""
MAX_STREAM_BYTES = 2**30
"""Of all that it says: ten lines a second, for days."""
_DONE = "success"
_GOES_ON = "what has come so far is kept: the same command goes on from there"


async def pull(
    settings: LLMSettings, model: str, tell: Callable[[Progress], None], *, idle_s: float = IDLE_S
) -> None:
    """Return once Ollama has the model; `tell` hears each line of it.

    Raises:
        LLMModelNotFound: There is no such model.
        LLMProviderError: Ollama cannot be reached, stopped, or said that it failed.
        LLMSettingsError: LLM_LOCAL_ONLY, and Ollama is elsewhere.
    """
    async with _asking(settings) as inquiries:
        inquiry = ollama_says.inquiry(settings, ollama.api_base(settings), ollama_says.PULL)
        posted, exchange = inquiries.streamed(
            LLMProvider.OLLAMA, inquiry, {"model": model}, max_bytes=MAX_STREAM_BYTES
        )
        last = None
        try:
            async with (
                asyncio.timeout(idle_s) as limit,
                posted,
                aclosing(_told(posted, exchange, model)) as told,
            ):
                async for progress in told:
                    limit.reschedule(asyncio.get_running_loop().time() + idle_s)
                    if progress.error is not None:
                        raise _failed(model, progress.error)
                    tell(progress)
                    last = progress.status
        except TimeoutError:
            raise LLMTimeout(f"ollama has said nothing of {model} for {idle_s:g} s; {_GOES_ON}") from None
        if last != _DONE:
            raise LLMUnavailable(f"ollama broke off before it had {model}; {_GOES_ON}")


async def load(settings: LLMSettings, model: str, *, keep_alive: str | None, timeout_s: float) -> None:
    """Return once Ollama holds the model in memory, with the window that calls ask for: else the first one loads it anew.

    Args:
        settings: Where Ollama is.
        model: As Ollama names it.
        keep_alive: As LLM_OLLAMA_KEEP_ALIVE, which it beats.
        timeout_s: Seconds that it may take.

    Raises:
        LLMModelNotFound: It is not pulled.
        LLMProviderError: Ollama cannot be reached, or cannot load it.
        LLMSettingsError: LLM_LOCAL_ONLY, and Ollama is elsewhere.
    """
    kept = ollama.keep_alive(keep_alive or settings.ollama_keep_alive)
    options = {"num_ctx": settings.num_ctx_of("ollama", model)}
    body = {"model": model, "stream": False, "options": options}  # no prompt: it is loaded, and nothing runs
    async with _asking(settings) as inquiries:
        inquiry = ollama_says.inquiry(settings, ollama.api_base(settings), ollama_says.GENERATE)
        try:
            async with asyncio.timeout(timeout_s):
                exchange = await inquiries.asked(
                    LLMProvider.OLLAMA, inquiry, body if kept is None else {**body, "keep_alive": kept}
                )
        except TimeoutError:
            raise LLMTimeout(f"ollama has not loaded {model} within {timeout_s:g} s (--timeout)") from None
    if exchange.status not in GOOD:
        raise _refused(model, exchange)


@asynccontextmanager
async def _asking(settings: LLMSettings) -> AsyncIterator[Inquiries]:
    """Yield the way to Ollama, and tell in our errors what goes wrong on it."""
    base = ollama.api_base(settings)
    if settings.local_only and not is_local_url(base, settings.local_hosts):
        raise LLMSettingsError(
            f"LLM_LOCAL_ONLY=true: {base} is no host of LLM_LOCAL_HOSTS, so it is not asked",
            variable="LLM_LOCAL_ONLY",
        )
    inquiries = Inquiries(settings)
    try:
        yield inquiries
    except Unreachable as error:
        raise LLMUnavailable(
            f"ollama does not answer at {base} ({error}): start it (`ollama serve`), or set LLM_OLLAMA_API_BASE"
        ) from None
    except BrokenOff as error:
        raise LLMUnavailable(f"the connection to {base} was lost ({error}); {_GOES_ON}") from None
    except UnusableReply as error:
        raise LLMBadResponse(
            f"{base} answers, but not as Ollama does: {error}", possibly_paid=False
        ) from None
    finally:
        await inquiries.close()


async def _told(posted: Posted, exchange: Exchange, model: str) -> AsyncGenerator[Progress, None]:
    if exchange.status not in GOOD:
        exchange.body = await posted.whole()
        raise _refused(model, exchange)
    lines = Lines()
    async for piece in posted:
        for line in lines.cut(piece):
            yield _read(line)
    for line in lines.rest():
        yield _read(line)


def _read(line: bytes) -> Progress:
    try:
        return ollama_says.progress_of(json.loads(line))
    except ValueError as error:
        raise UnusableReply(str(error)) from None


def _refused(model: str, exchange: Exchange) -> LLMProviderError:
    said = _words(exchange.body)
    if exchange.status in {401, 403}:
        return LLMAuth(
            f"ollama refuses the credentials ({exchange.status}): LLM_OLLAMA_API_KEY, LLM_OLLAMA_HEADERS"
        )
    return _failed(model, said or f"status {exchange.status}", status=exchange.status)


def _failed(model: str, said: str, *, status: int | None = None) -> LLMProviderError:
    if "not found" in said:  # of /api/generate
        return LLMModelNotFound(f"ollama has not pulled {model}: `signalbox pull {model}`")
    if "does not exist" in said:  # of /api/pull
        return LLMModelNotFound(
            f"there is no model {model} to pull ({said}): https://ollama.com/search lists them"
        )
    kind = LLMBadRequest if status in range(400, 500) else LLMUnavailable
    return kind(f"ollama could not do it for {model}: {said}")


def _words(body: bytes) -> str:
    """Return the error that an answer states, in one line; none if it states none."""
    try:
        said: Any = json.loads(body)
    except ValueError:
        return ""
    return " ".join(str(said["error"]).split()) if isinstance(said, dict) and "error" in said else ""
