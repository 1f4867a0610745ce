"""The lane of every provider that LiteLLM knows: `litellm.acompletion`, whose HTTP client and timeouts are ours.

LiteLLM hides status, headers and bytes of an answer, repeats a request whose connection closed before the headers,
leaves a task behind for each, and has no limit of size. So `_post` takes the place of its HTTP client's `post`, and
gives LiteLLM an answer that is free of what it would stumble over.
"""

import json
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx

from app.llm.candidates import Candidate
from app.llm.messages import ThinkingPart
from app.llm.types import LLMProvider
from app.llm.wire.answers import Answer, Call
from app.llm.wire.exchange import GOOD, Exchange, UnusableReply
from app.llm.wire.http import OneRequestHTTP
from app.llm.wire.loading import make_known
from app.llm.wire.mending import mended
from app.llm.wire.rendering import as_sent

SIGNATURE_MARK = "__thought__"
"""Between a tool-call id and the thought signature that LiteLLM packs into it."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of `acompletion`, as its HTTP client has to know it."""

    provider: LLMProvider
    line: OneRequestHTTP
    exchange: Exchange
    options: Mapping[str, Any]


_current: ContextVar[_Call] = ContextVar("llm_acompletion")


class AcompletionLane:
    """Lets LiteLLM do all but the HTTP."""

    def __init__(self, library: Any, lines: Mapping[LLMProvider, OneRequestHTTP]) -> None:
        from litellm._internal_context import is_internal_call  # noqa: PLC0415  # lazy: LiteLLM is loaded by now

        self._library = library
        self._lines = lines
        self._internal_call = is_internal_call
        self._client = _client()

    async def send(
        self, candidate: Candidate, options: Mapping[str, Any], exchange: Exchange
    ) -> Answer | None:
        """Return what the candidate said; as in `Lane.send`."""
        make_known(self._library, options["model"], candidate)
        provider = candidate.provider
        call = _current.set(_Call(provider, self._lines[provider], exchange, options))
        # Calls within LiteLLM are not logged; any other leaves a task of its logging behind in the event loop.
        internal = self._internal_call.set(True)
        try:
            response = await self._library.acompletion(
                **options, client=self._client, num_retries=0, max_retries=0
            )
        finally:
            self._internal_call.reset(internal)
            _current.reset(call)
        return _answer(response)


def _client() -> Any:
    """Return an HTTP client of LiteLLM's that posts by us and does nothing else."""
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler  # noqa: PLC0415  # lazy, as above

    client = AsyncHTTPHandler(transport=httpx.AsyncBaseTransport())  # refuses all
    client.client = client.client  # hands it over: else a task of LiteLLM's closes it some day
    client.post = _post
    return client


async def _post(
    url: str,
    *,
    headers: Mapping[str, str],
    data: str | None = None,
    json: Any = None,  # a name that LiteLLM gives
    **_unused: Any,  # timeout, stream, logging_obj ...
) -> httpx.Response:
    """Send one request of the current call and return its answer; called by LiteLLM.

    Raises:
        httpx.HTTPStatusError: The status is not a good one.
        Exception: As `OneRequestHTTP.send`.
    """
    call = _current.get()
    sent = _authorized(as_sent(headers), call.options)
    await call.line.send(url, sent, (data if data is not None else _dumped(json)).encode(), call.exchange)
    return httpx.Response(
        call.exchange.status or 0, content=_readable(call), request=httpx.Request("POST", url)
    ).raise_for_status()


def _readable(call: _Call) -> bytes:
    """Return what LiteLLM is given to read; an error's body is read by us alone."""
    if call.exchange.status not in GOOD:
        return b""
    try:
        return mended(call.provider, call.exchange)
    except UnusableReply as error:
        call.exchange.failure = error  # for LiteLLM dresses it up
        raise


def _dumped(payload: Any) -> str:
    return json.dumps(payload, ensure_ascii=False, allow_nan=False)


def _authorized(headers: dict[str, str], options: Mapping[str, Any]) -> dict[str, str]:
    """Return headers without the Authorization that LiteLLM adds of its own accord, from the environment."""
    wanted = as_sent(options.get("headers", {})).get("authorization")
    if wanted is not None:
        return {**headers, "authorization": wanted}
    if "api_key" not in options:
        headers.pop("authorization", None)
    return headers


def _answer(response: Any) -> Answer | None:  # litellm.ModelResponse
    if not response.choices:
        return None
    choice = response.choices[0]
    return Answer(
        text=choice.message.content,
        thoughts=_thoughts(choice.message),
        calls=[_tool_call(call) for call in choice.message.tool_calls or ()],
        finish=choice.finish_reason,
    )


def _thoughts(message: Any) -> list[ThinkingPart]:  # litellm.Message
    if blocks := getattr(message, "thinking_blocks", None):
        return [
            ThinkingPart(text=block["thinking"], signature=block.get("signature"))
            for block in blocks
            if block.get("thinking")
        ]
    text = getattr(message, "reasoning_content", None)
    return [ThinkingPart(text=text)] if text else []


def _tool_call(call: Any) -> Call:  # litellm.ChatCompletionMessageToolCall
    _, _, signature = (call.id or "").partition(SIGNATURE_MARK)
    return Call(name=call.function.name, arguments=call.function.arguments, signature=signature)
