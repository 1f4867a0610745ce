"""Has LiteLLM's transformation classes write the request of one call, without LiteLLM's wrapper around them."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import orjson

Json = dict[str, Any]
T = TypeVar("T")

_NO_PARAMETERS = frozenset(("model", "api_base", "api_key", "headers", "messages"))
_HELLO = [{"role": "user", "parts": [{"text": "Hello"}]}]
_BE_BRIEF = {"parts": [{"text": "Be brief."}]}
MAX_REMEMBERED = 128
MAX_REMEMBERED_BYTES = 32_768  # of one set of parameters; what is made of a longer one is made anew each time


class Rendered(NamedTuple):
    """One request, ready to be sent."""

    url: str
    headers: Mapping[str, str]
    body: bytes


class Renderer(Protocol):
    """Writes the requests of one provider."""

    def __call__(self, options: Mapping[str, Any]) -> Rendered:
        """Return the request of a call with these `call_options`; `stream` among them asks for a stream."""
        ...


class OllamaRenderer:
    """Writes requests to `/api/chat`."""

    def __init__(self, library: Any) -> None:
        self._read = library.utils.get_optional_params
        self._parameters = Remembered(self._parameters_of)
        self._config = config = library.OllamaChatConfig()
        defaults = config.get_config()
        config.get_config = lambda: defaults  # else it looks through its class for them with each call

    def __call__(self, options: Mapping[str, Any]) -> Rendered:
        """Return the request of a call with these `call_options`."""
        model = _bare(options["model"])
        headers = as_sent(options.get("headers", {}))
        if "api_key" in options:
            headers.setdefault("authorization", f"Bearer {options['api_key']}")
        body = self._config.transform_request(
            model=model,
            messages=options["messages"],
            optional_params=dict(self._parameters.of(model, options)),  # it takes some out
            litellm_params={},
            headers=headers,
        )
        base = options["api_base"]
        url = base if base.endswith("/api/chat") else f"{base}/api/chat"
        return Rendered(url, headers, _dumped(body))

    def _parameters_of(self, model: str, given: Json) -> Json:
        parameters: Json = self._read(model=model, custom_llm_provider="ollama_chat", **given)
        return parameters


class GeminiRenderer:
    """Writes requests to `:generateContent` and `:streamGenerateContent`."""

    def __init__(self, library: Any) -> None:
        from litellm.llms.vertex_ai.gemini.transformation import (  # noqa: PLC0415  # lazy: LiteLLM is loaded by now
            _transform_request_body,
            _transform_system_message,
        )

        self._read = library.utils.get_optional_params
        self._whole_body = _transform_request_body
        self._without_system = _transform_system_message
        self._contents = library.GoogleAIStudioGeminiConfig()._transform_messages  # noqa: SLF001  # no other way
        self._frames = Remembered(self._frame_of)

    def __call__(self, options: Mapping[str, Any]) -> Rendered:
        """Return the request of a call with these `call_options`."""
        model, messages = _bare(options["model"]), options["messages"]
        frame, framed = self._frames.of(model, options)
        body = self._framed(model, messages, frame) if framed else self._whole(model, messages, dict(frame))
        method = "streamGenerateContent?alt=sse" if options.get("stream") else "generateContent"
        return Rendered(
            f"{options['api_base']}/models/{model}:{method}",
            as_sent({"x-goog-api-key": options["api_key"]}),
            _dumped(body),
        )

    def _frame_of(self, model: str, given: Json) -> tuple[Json, bool]:
        """Return what goes around the messages and True; parameters and False if they reach into the messages."""
        parameters = self._read(model=model, custom_llm_provider="gemini", **given)
        example = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
        body = self._whole(model, example, dict(parameters))
        contents, system = body.pop("contents"), body.pop("system_instruction", None)
        if contents == _HELLO and system == _BE_BRIEF:
            return body, True
        return parameters, False

    def _framed(self, model: str, messages: list[Json], frame: Json) -> Json:
        system, rest = self._without_system(supports_system_message=True, messages=messages)
        contents = self._contents(messages=rest, model=model, litellm_params={})
        return {
            "contents": contents,
            **({} if system is None else {"system_instruction": system}),
            **frame,
        }

    def _whole(self, model: str, messages: list[Json], parameters: Json) -> Json:
        """Return the body as LiteLLM makes it; half of the time goes into looking up the model once more."""
        body: Json = self._whole_body(
            messages=messages,
            model=model,
            optional_params=parameters,
            custom_llm_provider="gemini",
            litellm_params={},
            cached_content=None,
        )
        return body


class Remembered(Generic[T]):
    """What LiteLLM makes of everything but the messages, kept by value: making it takes longer than all the rest."""

    def __init__(self, make: Callable[[str, Json], T]) -> None:
        """Call `make` with the model and its parameters, unless it was called with equal ones lately."""
        self._make = make
        self._made: OrderedDict[bytes, T] = OrderedDict()
        self._lock = threading.Lock()  # event loops of several threads may share a client

    def of(self, model: str, options: Mapping[str, Any]) -> T:
        """Return it; nobody may change it."""
        given = {name: value for name, value in options.items() if name not in _NO_PARAMETERS}
        key = _key(model, given)
        if not key:
            return self._make(model, given)
        with self._lock:
            found = self._made.get(key)
            if found is not None:
                self._made.move_to_end(key)
                return found
        # Made of a copy: what is kept shares nothing with the request of a caller.
        found = self._make(model, orjson.loads(key)[1])
        with self._lock:
            self._made[key] = found
            if len(self._made) > MAX_REMEMBERED:
                self._made.popitem(last=False)
        return found


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
    return key if len(key) <= MAX_REMEMBERED_BYTES else b""


def _dumped(body: object) -> bytes:
    """Return `body` as JSON; numbers that JSON cannot say were refused with the fingerprint."""
    try:
        return orjson.dumps(body)
    except TypeError:  # as above
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
