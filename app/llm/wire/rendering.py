"""Has LiteLLM's transformation classes write the request of one call, without LiteLLM's wrapper around them."""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

Json = dict[str, Any]

_NO_PARAMETERS = frozenset(("model", "api_base", "api_key", "headers", "messages"))
_MAX_REMEMBERED = 256
_MAX_REMEMBERED_BYTES = 65_536  # of one: longer ones are rendered anew each time


@dataclass(frozen=True, slots=True)
class Rendered:
    """One request, ready to be sent."""

    url: str
    headers: Mapping[str, str]
    body: bytes


class Renderer(Protocol):
    """Writes the requests of one provider."""

    def __call__(self, options: Mapping[str, Any]) -> Rendered:
        """Return the request of a call with these `call_options`."""
        ...


class OllamaRenderer:
    """Writes requests to `/api/chat`."""

    def __init__(self, library: Any) -> None:
        self._parameters = _Parameters(library.utils.get_optional_params, "ollama_chat")
        self._config = library.OllamaChatConfig()

    def __call__(self, options: Mapping[str, Any]) -> Rendered:
        """Return the request of a call with these `call_options`."""
        model = _bare(options["model"])
        headers = as_sent(options.get("headers", {}))
        if "api_key" in options:
            headers.setdefault("authorization", f"Bearer {options['api_key']}")
        body = self._config.transform_request(
            model=model,
            messages=options["messages"],
            optional_params=self._parameters.of(model, options),
            litellm_params={},
            headers=headers,
        )
        base = options["api_base"]
        url = base if base.endswith("/api/chat") else f"{base}/api/chat"
        return Rendered(url, headers, _dumped(body))


class GeminiRenderer:
    """Writes requests to `:generateContent`."""

    def __init__(self, library: Any) -> None:
        from litellm.llms.vertex_ai.gemini.transformation import _transform_request_body  # noqa: PLC0415  # lazy

        self._parameters = _Parameters(library.utils.get_optional_params, "gemini")
        self._transform = _transform_request_body

    def __call__(self, options: Mapping[str, Any]) -> Rendered:
        """Return the request of a call with these `call_options`."""
        model = _bare(options["model"])
        body = self._transform(
            messages=options["messages"],
            model=model,
            optional_params=self._parameters.of(model, options),
            custom_llm_provider="gemini",
            litellm_params={},
            cached_content=None,
        )
        return Rendered(
            f"{options['api_base']}/models/{model}:generateContent",
            as_sent({"x-goog-api-key": options["api_key"]}),
            _dumped(body),
        )


class _Parameters:
    """LiteLLM's reading of everything but the messages, remembered by value: it takes longer than the rest."""

    def __init__(self, read: Callable[..., Json], provider: str) -> None:
        self._read = read
        self._provider = provider
        self._remembered: OrderedDict[bytes, Json] = OrderedDict()

    def of(self, model: str, options: Mapping[str, Any]) -> Json:
        """Return the parameters as the provider names them; the caller may change their first level."""
        given = {name: value for name, value in options.items() if name not in _NO_PARAMETERS}
        key = _key(model, given)
        if not key:
            return self._read(model=model, custom_llm_provider=self._provider, **given)
        found = self._remembered.get(key)
        if found is None:
            mine = orjson.loads(key)[1]  # what is remembered shares nothing with the caller's request
            found = self._read(model=model, custom_llm_provider=self._provider, **mine)
            self._remembered[key] = found
            if len(self._remembered) > _MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        else:
            self._remembered.move_to_end(key)
        return dict(found)


def as_sent(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers by lower-case names, of which the last one counts, and the content's type."""
    return {name.lower(): value for name, value in headers.items()} | {"content-type": "application/json"}


def _bare(name: str) -> str:
    return name.partition("/")[2]


def _key(model: str, given: Json) -> bytes:
    """Return what two equal sets of parameters share, in their order; empty if they are not to be remembered."""
    try:
        key = orjson.dumps([model, given])
    except TypeError:  # an integer of more than 64 bits
        return b""
    return key if len(key) <= _MAX_REMEMBERED_BYTES else b""


def _dumped(body: object) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # as above
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
