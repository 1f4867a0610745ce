"""Speak OpenAI's chat completions from a script, with its error bodies, its pieces of tool calls and its `[DONE]`."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar, Final

from app.llm.testing.content import Answer, Call, Cause, Failure, Json, Provider, Shape, Stream, Thought, Wire
from app.llm.testing.derive import Ask, Tool, tokens_in
from app.llm.testing.record import Received
from app.llm.testing.server import StubServer

_ERRORS: Final = {
    400: ("invalid_request_error", "Your request is invalid."),
    401: ("invalid_request_error", "Incorrect API key provided. You can find your API key in your account."),
    403: ("insufficient_permissions", "You have insufficient permissions for this operation."),
    404: ("invalid_request_error", "The model does not exist or you do not have access to it."),
    429: ("rate_limit_exceeded", "Rate limit reached for requests."),
    500: ("server_error", "The server had an error while processing your request. Sorry about that!"),
    503: ("server_error", "The engine is currently overloaded, please try again later."),
}
_CREATED: Final = 1_700_000_000


class StubOpenAI(StubServer):
    """A server of OpenAI's chat completions, as Groq and many others are one, that knows `models` and `api_key`.

    Example:
        >>> from app.llm.testing import Reply, StubOpenAI
        >>> with StubOpenAI(models=("gpt-4.1-mini",), api_key="stub-key") as stub:
        ...     stub.script(Reply.text("hi"), Reply.rate_limited(2))
    """

    provider: ClassVar[Provider] = "openai"
    _prefix: ClassVar[str] = "/v1"
    _stream_type: ClassVar[str] = "text/event-stream"

    def __init__(self, models: Iterable[str] = ("gpt-4.1-mini",), api_key: str = "stub-key") -> None:
        super().__init__()
        self._models = tuple(models)
        self._api_key = api_key
        self._calls_told: Counter[int] = Counter()

    # -- POST /v1/chat/completions

    def _is_model_call(self, method: str, path: str) -> bool:
        return method == "POST" and path == "/v1/chat/completions"

    def _refusal(self, received: Received) -> Failure | None:
        if received.headers.get("authorization") != f"Bearer {self._api_key}":
            return Failure(status=401)
        body = received.body
        if not isinstance(body, dict) or not body.get("messages"):
            return Failure(status=400, message="Missing required parameter: 'messages'.")
        if body.get("model") not in self._models:
            return Failure(status=404)
        return None

    def _ask(self, received: Received) -> Ask:
        body: Json = received.body
        messages: list[Json] = body["messages"]
        users = [place for place, message in enumerate(messages) if message.get("role") == "user"]
        since = messages[users[-1] + 1 :] if users else messages
        choice = body.get("tool_choice") or "auto"
        return Ask(
            text=_text(messages[users[-1]].get("content")) if users else "",
            tools=_offered(body, choice),
            called=tuple(call["function"]["name"] for each in since for call in each.get("tool_calls") or ()),
            results=tuple(_text(each.get("content")) for each in since if each.get("role") == "tool"),
            schema=_schema(body.get("response_format") or {}),
            tool_required=choice == "required" or isinstance(choice, dict),
        )

    def _answer(self, answer: Answer, received: Received) -> Wire:
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.thinking is not None:
            message["reasoning"] = answer.thinking
        if answer.calls:
            message["tool_calls"] = [_call(call, place) for place, call in enumerate(answer.calls)]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(answer)}
        body = {**_head(received, "chat.completion"), "choices": [choice], **_usage(answer, received)}
        return Wire(body=_dumped(body))

    def _wants_stream(self, received: Received) -> bool:
        return received.body.get("stream") is True

    def _chunk(self, piece: str | Thought | Call | Failure | tuple[Call, ...], received: Received) -> bytes:
        match piece:
            case Failure():
                return _event(json.loads(self._failure(piece, received).body))
            case str():
                return _delta(received, {"content": piece})
            case Thought():
                return _delta(received, {"reasoning": piece.text})
            case _:
                calls = piece if isinstance(piece, tuple) else (piece,)
                return b"".join(self._in_pieces(call, received) for call in calls)

    def _in_pieces(self, call: Call, received: Received) -> bytes:
        """Say a call as OpenAI does: its name first, then its arguments bit by bit."""
        place = self._calls_told[received.ordinal]
        self._calls_told[received.ordinal] += 1
        whole = _call(call, place)
        arguments = whole["function"]["arguments"]
        half = len(arguments) // 2
        first = {"index": place, **whole, "function": {"name": call.name, "arguments": ""}}
        rest = [
            {"index": place, "function": {"arguments": said}} for said in (arguments[:half], arguments[half:])
        ]
        return b"".join(_delta(received, {"tool_calls": [each]}) for each in (first, *rest))

    def _last_chunk(self, stream: Stream, received: Received) -> bytes:
        whole = stream.whole()
        del self._calls_told[received.ordinal]
        last = _delta(received, {}, _finish(whole))
        if (received.body.get("stream_options") or {}).get("include_usage"):
            head = _head(received, "chat.completion.chunk")
            last += _event({**head, "choices": [], **_usage(whole, received)})
        return last + b"data: [DONE]\n\n"

    def _failure(self, failure: Failure, received: Received) -> Wire:  # noqa: ARG002  # Ollama's errors name the model
        kind, message = _ERRORS.get(failure.status, ("server_error", "Unknown error."))
        headers = dict(failure.headers)
        if failure.retry_after_s is not None:
            headers["Retry-After"] = str(failure.retry_after_s)
        code = "invalid_api_key" if failure.status == 401 else None  # noqa: PLR2004  # a status of HTTP
        text = failure.message or message
        if failure.cause is Cause.CONTEXT_EXCEEDED and failure.tokens is not None:
            counted, limit = failure.tokens
            code = "context_length_exceeded"
            text = (
                f"This model's maximum context length is {limit} tokens. However, your messages resulted in "
                f"{counted} tokens. Please reduce the length of the messages."
            )
        error = {"message": text, "type": kind, "param": None, "code": code}
        body = {"error": error} if failure.body is None else failure.body
        return Wire(body=_dumped(body), status=failure.status, headers=headers)

    # -- the rest of the API

    async def _aside(self, received: Received) -> Wire:
        if received.headers.get("authorization") != f"Bearer {self._api_key}":
            return self._failure(Failure(status=401), received)
        if (received.method, received.path) != ("GET", "/v1/models"):
            return self._failure(Failure(status=404, message="Unknown request URL."), received)
        said = {"object": "model", "created": _CREATED, "owned_by": "stub"}
        return Wire(body=_dumped({"object": "list", "data": [{"id": each, **said} for each in self._models]}))


def _text(content: object) -> str:
    if isinstance(content, list):
        return " ".join(part["text"] for part in content if part.get("type") == "text")
    return content if isinstance(content, str) else ""


def _offered(body: Json, choice: object) -> tuple[Tool, ...]:
    """Return the tools that the choice leaves."""
    functions = [each["function"] for each in body.get("tools") or () if choice != "none"]
    only = choice["function"]["name"] if isinstance(choice, dict) else None
    return tuple(
        Tool(name=each["name"], parameters=each.get("parameters") or {})
        for each in functions
        if only in {None, each["name"]}
    )


def _schema(wanted: Json) -> Json | None:
    if wanted.get("type") == "json_schema":
        schema: Json = wanted["json_schema"]["schema"]
        return schema
    return {} if wanted.get("type") == "json_object" else None


def _call(call: Call, place: int) -> Json:
    function = {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)}
    return {"id": call.id or f"call_stub_{place}", "type": "function", "function": function}


def _finish(answer: Answer) -> str:
    return "tool_calls" if answer.calls and answer.finish == "stop" else answer.finish


def _usage(answer: Answer, received: Received) -> Json:
    if answer.shape is Shape.NO_USAGE:
        return {}
    said = (answer.text or "") + "".join(json.dumps(dict(call.arguments)) for call in answer.calls)
    read, written = answer.usage or (tokens_in(received.raw.decode()), tokens_in(said))
    counts = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return {"usage": {**counts, "prompt_tokens_details": {"cached_tokens": 0}}}


def _head(received: Received, kind: str) -> Json:
    return {
        "id": f"chatcmpl-{received.ordinal}",
        "object": kind,
        "created": _CREATED,
        "model": received.body["model"],
    }


def _delta(received: Received, delta: Json, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _event({**_head(received, "chat.completion.chunk"), "choices": [choice]})


def _event(value: Json) -> bytes:
    return b"data: " + _dumped(value) + b"\n\n"


def _dumped(value: Any) -> bytes:  # JSON
    return json.dumps(value, ensure_ascii=False).encode()
