"""Asks providers about themselves, over the connections that their calls would take; nothing of it is a call or is paid."""

import json
from collections.abc import Mapping
from typing import Any

from app.llm.providers.listings import Inquiry
from app.llm.settings import LLMSettings
from app.llm.types import LLMProvider
from app.llm.wire.exchange import Exchange
from app.llm.wire.http import OneRequestHTTP, Posted
from app.llm.wire.lanes import line_to

MAX_BYTES = 4 * 2**20
"""Of one answer; /api/show quotes licences and templates."""


class Inquiries:
    """Whoever asks decides whom, when, and for how long: there is no time limit here."""

    def __init__(self, settings: LLMSettings) -> None:
        """Take where the providers are; no connection is made yet."""
        self._settings = settings
        self._lines: dict[LLMProvider, OneRequestHTTP] = {}

    async def asked(
        self, provider: LLMProvider, inquiry: Inquiry, body: Mapping[str, Any] | None = None
    ) -> Exchange:
        """Return what came back, whatever its status; without a body it is a GET.

        Raises:
            Unreachable: There was no connection.
            BrokenOff: It ended before the answer did.
            UnusableReply: The answer is too large.
        """
        exchange = _exchange(MAX_BYTES)
        if body is None:
            await self._line(provider).fetch(inquiry.url, inquiry.headers, exchange)
        else:
            await self._line(provider).send(inquiry.url, inquiry.headers, json.dumps(body).encode(), exchange)
        return exchange

    def streamed(
        self, provider: LLMProvider, inquiry: Inquiry, body: Mapping[str, Any], *, max_bytes: int
    ) -> tuple[Posted, Exchange]:
        """Return what, once it is entered, gives the answer in pieces, and where its status then stands."""
        exchange = _exchange(max_bytes)
        data = json.dumps(body).encode()
        return self._line(provider).stream(inquiry.url, inquiry.headers, data, exchange), exchange

    async def close(self) -> None:
        """Close the connections; idempotent."""
        lines, self._lines = self._lines, {}
        for line in lines.values():
            await line.close()

    def _line(self, provider: LLMProvider) -> OneRequestHTTP:
        if provider not in self._lines:
            self._lines[provider] = line_to(self._settings, provider)
        return self._lines[provider]


def _exchange(max_bytes: int) -> Exchange:
    return Exchange(max_bytes=max_bytes, on_send=lambda: None)
