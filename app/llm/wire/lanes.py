"""Opens the lanes and the connections below them, and says which provider goes by which lane."""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from app.llm.providers import known
from app.llm.settings import LiteLLMLane, LLMSettings
from app.llm.types import LLMProvider
from app.llm.wire.acompletion import AcompletionLane
from app.llm.wire.dialect import DialectLane, UnfitLibrary
from app.llm.wire.http import OneRequestHTTP
from app.llm.wire.lane import Lane
from app.llm.wire.loading import load_tokenizer

_WITH_DIALECT = (LLMProvider.OLLAMA, LLMProvider.GEMINI)


@dataclass(frozen=True, slots=True)
class Lanes:
    """The lane of each provider."""

    of: Mapping[LLMProvider, Lane]
    lines: Mapping[LLMProvider, OneRequestHTTP]

    @classmethod
    def opened(cls, settings: LLMSettings, library: Any, unfit: Callable[[str], None]) -> Self:
        """Return the lanes of these settings, with what else they load; no connection is made yet.

        Args:
            settings: Where the providers are, and which lane is wanted.
            library: LiteLLM, loaded.
            unfit: Told why `dialect` cannot be had where it is wanted; `acompletion` takes its place.
        """
        lines = {provider: line_to(settings, provider) for provider in known()}
        of: dict[LLMProvider, Lane] = dict.fromkeys(known(), AcompletionLane(library, lines))
        if settings.litellm_lane is LiteLLMLane.DIALECT:
            try:
                of |= dict.fromkeys(_WITH_DIALECT, DialectLane(library, lines))
            except UnfitLibrary as error:
                unfit(str(error))
        asked = (lane for provider, lane in of.items() if known()[provider].usable(settings))
        if any(isinstance(lane, AcompletionLane) for lane in asked):
            load_tokenizer()
        return cls(of, lines)

    async def close(self) -> None:
        """Close the connections of every event loop; idempotent."""
        for line in self.lines.values():
            await line.close()


def line_to(settings: LLMSettings, provider: LLMProvider) -> OneRequestHTTP:
    """Return connections to a provider, through the environment's proxy if it has one for that host."""
    base = urlsplit(known()[provider].api_base(settings))
    tls = settings.ca_bundle is not None and base.scheme == "https"
    return OneRequestHTTP(
        connections=settings.concurrency_limit,
        trust_env=not settings.local_only and _has_proxy(base),  # a proxy is no local host
        ssl_context=ssl.create_default_context(cafile=settings.ca_bundle) if tls else None,
    )


def _has_proxy(base: SplitResult) -> bool:
    """Return whether the environment has a proxy for this host; asking for it with each call would take a thread."""
    host = base.hostname or ""
    return not _is_loopback(host) and base.scheme in getproxies() and not proxy_bypass(host)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
