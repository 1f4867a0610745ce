"""The lane of Ollama and Gemini: LiteLLM's classes write the request, and nothing else of LiteLLM is in the way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from app.llm.candidates import Candidate
from app.llm.types import LLMProvider
from app.llm.wire.answers import Answer
from app.llm.wire.exchange import GOOD, Exchange, Refused
from app.llm.wire.http import OneRequestHTTP
from app.llm.wire.loading import make_known
from app.llm.wire.outlet import Outlet
from app.llm.wire.parsing import gemini_answer, ollama_answer
from app.llm.wire.readers import GeminiReader, OllamaReader, Reader
from app.llm.wire.rendering import GeminiRenderer, OllamaRenderer, Renderer

Read = Callable[[bytes, Exchange], Answer | None]


class UnfitLibrary(Exception):
    """The installed LiteLLM does not write what this lane needs of it."""


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How one provider is spoken to, and the request that shows that LiteLLM still writes it."""

    renderer: Callable[[Any], Renderer]
    answer: Read
    reader: Callable[[Exchange], Reader]
    example: Mapping[str, Any]
    example_body: Mapping[str, Any]


_DIALECTS: Mapping[LLMProvider, _Dialect] = {
    LLMProvider.OLLAMA: _Dialect(
        OllamaRenderer,
        ollama_answer,
        OllamaReader,
        {"model": "ollama_chat/llama3.2", "num_ctx": 512, "max_tokens": 9},
        {
            "model": "llama3.2",
            "messages": [{"role": "user", "content": "Hello", "images": []}],
            "options": {"num_predict": 9, "num_ctx": 512},
            "stream": False,
        },
    ),
    LLMProvider.GEMINI: _Dialect(
        GeminiRenderer,
        gemini_answer,
        GeminiReader,
        {"model": "gemini/gemini-2.5-flash", "temperature": 0.5, "max_tokens": 9},
        {
            "contents": [{"role": "user", "parts": [{"text": "Hello"}]}],
            "generationConfig": {"temperature": 0.5, "max_output_tokens": 9},
        },
    ),
}


class DialectLane:
    """Writes the request, posts it, reads the answer: no wrapper, no task, no second reading."""

    def __init__(self, library: Any, lines: Mapping[LLMProvider, OneRequestHTTP]) -> None:
        """Take LiteLLM's classes, and try them.

        Raises:
            UnfitLibrary: They are not there, do not take what they took, or write something else.
        """
        self._library = library
        self._spoken: dict[LLMProvider, tuple[Renderer, OneRequestHTTP, _Dialect]] = {}
        try:
            for provider, dialect in _DIALECTS.items():
                renderer = dialect.renderer(library)
                _try_out(renderer, dialect)
                self._spoken[provider] = renderer, lines[provider], dialect
        except Exception as error:  # whatever another version does
            raise UnfitLibrary(f"{type(error).__name__}: {error}") from error

    async def send(
        self, candidate: Candidate, options: Mapping[str, Any], exchange: Exchange
    ) -> Answer | None:
        """Return what the candidate said; as in `Lane.send`."""
        make_known(self._library, options["model"], candidate)
        render, http, dialect = self._spoken[candidate.provider]
        rendered = render(options)
        await http.send(rendered.url, rendered.headers, rendered.body, exchange)
        if exchange.status not in GOOD:
            raise Refused(exchange.status)
        return dialect.answer(exchange.body, exchange)

    async def stream(
        self, candidate: Candidate, options: Mapping[str, Any], exchange: Exchange, outlet: Outlet
    ) -> None:
        """Put what the candidate says into `outlet` as it arrives; as in `Lane.stream`."""
        make_known(self._library, options["model"], candidate)
        render, http, dialect = self._spoken[candidate.provider]
        rendered = render({**options, "stream": True})
        async with http.stream(rendered.url, rendered.headers, rendered.body, exchange) as posted:
            if exchange.status not in GOOD:
                exchange.body = await posted.whole()
                raise Refused(exchange.status)
            reader = outlet.opened(dialect.reader(exchange))
            async for piece in posted:
                await outlet.give(reader.take(piece))
                if reader.finished:
                    await outlet.give(reader.take(await posted.last()))
                    break
            await outlet.give(reader.rest())


def _try_out(renderer: Renderer, dialect: _Dialect) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    given = {**dialect.example, "messages": messages, "api_base": "http://example.invalid", "api_key": "none"}
    body = orjson.loads(renderer(given).body)
    if body != dialect.example_body:
        raise ValueError(f"wrote {body} for {dict(dialect.example)}")
