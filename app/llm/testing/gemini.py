"""Speak Gemini's generateContent API from a script, with Google's error bodies and its failures dressed as success."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

from app.llm.testing.content import (
    Answer,
    Call,
    Cause,
    Failure,
    Json,
    Provider,
    Shape,
    Stream,
    Thought,
    Wire,
)
from app.llm.testing.derive import Ask, Tool, tokens_in
from app.llm.testing.record import Received
from app.llm.testing.server import StubServer

_CALL_PATH: Final = re.compile(r"/v1beta/models/([^/:]+):(?:generateContent|(streamGenerateContent))")
_STATUSES: Final = {
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    403: ("PERMISSION_DENIED", "The caller does not have permission"),
    404: ("NOT_FOUND", "Requested entity was not found."),
    409: ("ABORTED", "The operation was aborted."),
    429: (
        "RESOURCE_EXHAUSTED",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    499: ("CANCELLED", "The operation was cancelled."),
    500: ("INTERNAL", "An internal error has occurred. Please retry or report the problem."),
    501: ("UNIMPLEMENTED", "Operation is not implemented, or supported, or enabled."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
}
_PAGE: Final = 50
_GOOGLE_RPC: Final = "type.googleapis.com/google.rpc"
_BAD_KEY: Final = "API key not valid. Please pass a valid API key."
_NO_KEY: Final = (
    "Method doesn't allow unregistered callers (callers without established identity). "
    "Please use API Key or other form of API consumer identity to call this API."
)


class StubGemini(StubServer):
    """A Gemini API that knows `models` and accepts `api_key`, in the x-goog-api-key header or the key parameter.

    Example:
        >>> from app.llm.testing import Reply, StubGemini
        >>> with StubGemini(models=("gemini-2.5-flash",), api_key="stub-key") as stub:
        ...     stub.script(Reply.json({"city": "Oslo"}), Reply.blocked("SAFETY"))
    """

    provider: ClassVar[Provider] = "gemini"
    _prefix: ClassVar[str] = "/v1beta"
    _stream_type: ClassVar[str] = "text/event-stream"

    def __init__(
        self,
        models: Iterable[str] = ("gemini-2.5-flash",),
        api_key: str = "stub-key",
        *,
        input_token_limit: int = 1_048_576,
    ) -> None:
        super().__init__()
        self._models = tuple(models)
        self._api_key = api_key
        self._input_token_limit = input_token_limit

    # -- POST /v1beta/models/{id}:generateContent

    def _is_model_call(self, method: str, path: str) -> bool:
        return method == "POST" and _CALL_PATH.fullmatch(path) is not None

    def _refusal(self, received: Received) -> Failure | None:
        if refused := self._key_refusal(received):
            return refused
        model = _model_of(received)
        if model not in self._models:
            return Failure(
                status=404,
                message=f"models/{model} is not found for API version v1beta, or is not supported for generateContent. "
                "Call ListModels to see the list of available models and their supported methods.",
            )
        if not isinstance(received.body, dict) or not _pick(received.body, "contents"):
            return Failure(
                status=400, message="* GenerateContentRequest.contents: contents is not specified\n"
            )
        return None

    def _key_refusal(self, received: Received) -> Failure | None:
        given = received.headers.get("x-goog-api-key") or received.query.get("key")
        if given == self._api_key:
            return None
        return (
            Failure(status=403, message=_NO_KEY)
            if given is None
            else Failure(status=400, message=_BAD_KEY, cause=Cause.WRONG_KEY)
        )

    def _ask(self, received: Received) -> Ask:
        body: Json = received.body
        parts = [
            (content.get("role", "user"), part) for content in body["contents"] for part in content["parts"]
        ]
        users = [place for place, (role, part) in enumerate(parts) if role == "user" and "text" in part]
        since = [part for _, part in parts[users[-1] + 1 :]] if users else []
        config: Json = _pick(body, "generationConfig") or {}
        mode, tools = _offered(body)
        called = [part for part in since if _pick(part, "functionCall")]
        results = [part for part in since if _pick(part, "functionResponse")]
        return Ask(
            text=parts[users[-1]][1]["text"] if users else "",
            tools=tools,
            called=tuple(_pick(part, "functionCall")["name"] for part in called),
            results=tuple(_result_text(_pick(part, "functionResponse")) for part in results),
            schema=_schema(config),
            tool_required=mode == "ANY",
        )

    def _answer(self, answer: Answer, received: Received) -> Wire:
        return Wire(
            body=_dumped(self._body(answer, received)), content_type="application/json; charset=UTF-8"
        )

    def _signed(self, received: Received) -> Json:
        return {"modelVersion": _model_of(received), "responseId": f"stub-{received.ordinal}"}

    def _body(self, answer: Answer, received: Received) -> Json:
        body: Json = {}
        if answer.shape is Shape.PROMPT_BLOCKED:
            body["promptFeedback"] = {"blockReason": answer.finish}
        elif answer.shape is not Shape.NO_CANDIDATES:
            body["candidates"] = [_candidate(answer)]
        if answer.shape is not Shape.NO_USAGE:
            body["usageMetadata"] = _usage(answer, received)
        return {**body, **self._signed(received)}

    def _wants_stream(self, received: Received) -> bool:
        found = _CALL_PATH.fullmatch(received.path)
        return found is not None and found[2] is not None

    def _chunk(self, piece: str | Thought | Call | Failure | tuple[Call, ...], received: Received) -> bytes:
        if isinstance(piece, Failure):
            return _event(json.loads(self._failure(piece, received).body))
        parts: list[Json]
        match piece:
            case str():
                parts = [{"text": piece}]
            case Thought():
                seal = {} if piece.signature is None else {"thoughtSignature": piece.signature}
                parts = [{"text": piece.text, "thought": True, **seal}]
            case _:
                parts = [_call_part(call) for call in (piece if isinstance(piece, tuple) else (piece,))]
        candidate = {"content": {"parts": parts, "role": "model"}, "index": 0}
        return _event({"candidates": [candidate], **self._signed(received)})

    def _last_chunk(self, stream: Stream, received: Received) -> bytes:
        body = self._body(stream.whole(), received)
        for candidate in body.get("candidates", ()):
            if candidate["content"].get("parts"):
                candidate["content"] = {"parts": [{"text": ""}], "role": "model"}
        return _event(body)

    def _failure(self, failure: Failure, received: Received) -> Wire:  # noqa: ARG002  # Ollama's errors name the model
        status, message = _STATUSES.get(failure.status, ("UNKNOWN", "Unknown error."))
        error: Json = {"code": failure.status, "message": failure.message or message, "status": status}
        if failure.tokens is not None:
            counted, limit = failure.tokens
            error["message"] = (
                f"The input token count ({counted}) exceeds the maximum number of tokens allowed ({limit})."
            )
        if failure.cause is Cause.WRONG_KEY:
            error["details"] = [_bad_key_detail()]
        if failure.cause is Cause.RATE_LIMITED and failure.retry_after_s is not None:
            error["details"] = [
                {"@type": f"{_GOOGLE_RPC}.RetryInfo", "retryDelay": f"{failure.retry_after_s}s"}
            ]
        body = {"error": error} if failure.body is None else failure.body
        return Wire(
            body=_dumped(body),
            status=failure.status,
            headers=failure.headers,
            content_type="application/json; charset=UTF-8",
        )

    # -- the rest of the API

    async def _aside(self, received: Received) -> Wire:
        if refused := self._key_refusal(received):
            return self._failure(refused, received)
        known = {f"/v1beta/models/{model}": self._listed(model) for model in self._models}
        if received.method == "GET" and received.path == "/v1beta/models":
            return self._page(list(known.values()), received)
        if received.method == "GET" and received.path in known:
            return Wire(body=_dumped(known[received.path]))
        return self._failure(Failure(status=404), received)

    def _page(self, listed: list[Json], received: Received) -> Wire:
        """Return a page of models, 50 unasked, with the token of the next one if there is one."""
        start = int(received.query.get("pageToken", 0))
        end = start + int(received.query.get("pageSize", _PAGE))
        more = {"nextPageToken": str(end)} if end < len(listed) else {}
        return Wire(body=_dumped({"models": listed[start:end], **more}))

    def _listed(self, model: str) -> Json:
        return {
            "name": f"models/{model}",
            "version": "001",
            "displayName": model,
            "inputTokenLimit": self._input_token_limit,
            "outputTokenLimit": 65_536,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
        }


def _offered(body: Json) -> tuple[str, tuple[Tool, ...]]:
    """Return the calling mode (AUTO, ANY, NONE) and the tools that it leaves."""
    chosen: Json = _pick(_pick(body, "toolConfig") or {}, "functionCallingConfig") or {}
    mode = str(chosen.get("mode") or "AUTO").upper()
    allowed = _pick(chosen, "allowedFunctionNames")
    declared = [
        each for tool in body.get("tools") or () for each in _pick(tool, "functionDeclarations") or ()
    ]
    tools = tuple(
        Tool(
            name=each["name"], parameters=each.get("parameters") or _pick(each, "parametersJsonSchema") or {}
        )
        for each in declared
        if mode != "NONE" and (not allowed or each["name"] in allowed)
    )
    return mode, tools


def _schema(config: Json) -> Json | None:
    schema = _pick(config, "responseSchema") or _pick(config, "responseJsonSchema")
    if schema is None and _pick(config, "responseMimeType") == "application/json":
        return {}
    return schema if isinstance(schema, dict) else None


def _candidate(answer: Answer) -> Json:
    finish = {"stop": "STOP", "length": "MAX_TOKENS"}.get(answer.finish, answer.finish)
    if answer.shape in {Shape.BLOCKED, Shape.MALFORMED_CALL}:
        return {"content": {}, "finishReason": finish, "index": 0}
    parts: list[Json] = []
    if answer.thinking is not None:
        parts.append({"text": answer.thinking, "thought": True})
    if answer.text is not None:
        parts.append({"text": answer.text})
    parts.extend(map(_call_part, answer.calls))
    return {"content": {"parts": parts, "role": "model"}, "finishReason": finish, "index": 0}


def _call_part(call: Call) -> Json:
    made: Json = {"name": call.name, "args": dict(call.arguments)}
    part: Json = {"functionCall": made if call.id is None else {"id": call.id, **made}}
    return part if call.signature is None else {**part, "thoughtSignature": call.signature}


def _usage(answer: Answer, received: Received) -> Json:
    said = (answer.text or "") + "".join(json.dumps(dict(call.arguments)) for call in answer.calls)
    read, written = answer.usage or (tokens_in(received.raw.decode()), tokens_in(said))
    counts: Json = {"promptTokenCount": read}
    if answer.shape in {Shape.PLAIN, Shape.NO_USAGE}:
        counts["candidatesTokenCount"] = written
    thoughts = tokens_in(answer.thinking) if answer.thinking else 0
    if thoughts:
        counts["thoughtsTokenCount"] = thoughts
    counts["totalTokenCount"] = read + counts.get("candidatesTokenCount", 0) + thoughts
    return counts


def _pick(holder: Mapping[str, Any], name: str) -> Any:  # JSON
    """Return a field by its camelCase name or, as protobuf's JSON mapping allows, by its snake_case name."""
    snake = re.sub(r"[A-Z]", lambda letter: f"_{letter.group().lower()}", name)
    return holder.get(name, holder.get(snake))


def _result_text(response: Json) -> str:
    inner = response.get("response")
    if isinstance(inner, dict) and len(inner) == 1:
        inner = next(iter(inner.values()))
    return inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)


def _bad_key_detail() -> Json:
    return {
        "@type": f"{_GOOGLE_RPC}.ErrorInfo",
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com"},
    }


def _event(value: Json) -> bytes:
    return b"data: " + _dumped(value) + b"\r\n\r\n"


def _model_of(received: Received) -> str:
    found = _CALL_PATH.fullmatch(received.path)
    return found.group(1) if found else ""


def _dumped(value: Any) -> bytes:  # JSON
    return json.dumps(value, ensure_ascii=False).encode()
