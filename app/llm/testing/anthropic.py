"""Speak Anthropic's messages API from a script: content blocks, events by name, errors by type, counts of its cache."""

import json
from collections.abc import Iterable
from typing import Any, ClassVar, Final

from app.llm.testing.content import Answer, Call, Cause, Failure, Json, Provider, Shape, Stream, Thought, Wire
from app.llm.testing.derive import Ask, Tool, tokens_in
from app.llm.testing.record import Received
from app.llm.testing.server import StubServer

_ERRORS: Final = {
    400: ("invalid_request_error", "invalid request"),
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "model not found"),
    413: ("request_too_large", "Request exceeds the maximum allowed number of bytes."),
    429: ("rate_limit_error", "Number of requests has exceeded your rate limit."),
    504: ("timeout_error", "The request timed out."),
    529: ("overloaded_error", "Overloaded"),
}
_SIGNATURE: Final = "c3R1Yg=="
_PAGE: Final = 20


class StubAnthropic(StubServer):
    """An Anthropic API that knows `models` and `api_key`; a prompt that is marked to be kept is kept for ever.

    Example:
        >>> from app.llm.testing import Reply, StubAnthropic
        >>> with StubAnthropic(models=("claude-haiku-4-5",), api_key="stub-key") as stub:
        ...     stub.script(Reply.text("hi"), Reply.status(529))
    """

    provider: ClassVar[Provider] = "anthropic"
    _stream_type: ClassVar[str] = "text/event-stream"

    def __init__(self, models: Iterable[str] = ("claude-haiku-4-5",), api_key: str = "stub-key") -> None:
        super().__init__()
        self._models = tuple(models)
        self._api_key = api_key
        self._kept: set[str] = set()
        self._telling: dict[int, _Blocks] = {}

    # -- POST /v1/messages

    def _is_model_call(self, method: str, path: str) -> bool:
        return method == "POST" and path == "/v1/messages"

    def _refusal(self, received: Received) -> Failure | None:
        if received.headers.get("x-api-key") != self._api_key:
            return Failure(status=401)
        body = received.body
        if not isinstance(body, dict) or not body.get("messages"):
            return Failure(status=400, message="messages: Field required")
        missing = next((name for name in ("model", "max_tokens") if not body.get(name)), None)
        if missing or "anthropic-version" not in received.headers:
            return Failure(status=400, message=f"{missing or 'anthropic-version'}: Field required")
        if body["model"] not in self._models:
            return Failure(status=404, message=f"model: {body['model']}")
        return None

    def _ask(self, received: Received) -> Ask:
        body: Json = received.body
        parts = [(each["role"], part) for each in body["messages"] for part in _blocks(each["content"])]
        users = [
            place for place, (role, part) in enumerate(parts) if role == "user" and part["type"] == "text"
        ]
        since = [part for _, part in parts[users[-1] + 1 :]] if users else []
        choice: Json = body.get("tool_choice") or {}
        return Ask(
            text=parts[users[-1]][1]["text"] if users else "",
            tools=_offered(body, choice),
            called=tuple(part["name"] for part in since if part["type"] == "tool_use"),
            results=tuple(
                " ".join(each.get("text", "") for each in _blocks(part.get("content") or ""))
                for part in since
                if part["type"] == "tool_result"
            ),
            schema=_schema(body),
            tool_required=choice.get("type") in {"any", "tool"},
        )

    def _answer(self, answer: Answer, received: Received) -> Wire:
        content: list[Json] = []
        if answer.thinking is not None:
            content.append({"type": "thinking", "thinking": answer.thinking, "signature": _SIGNATURE})
        if answer.text:
            content.append({"type": "text", "text": answer.text})
        content += [_call(call, place) for place, call in enumerate(answer.calls)]
        body = {**_head(received), "content": content, "stop_reason": _finish(answer), "stop_sequence": None}
        counts = {} if answer.shape is Shape.NO_USAGE else {"usage": self._usage(answer, received)}
        return Wire(body=_dumped({**body, **counts}))

    def _wants_stream(self, received: Received) -> bool:
        return received.body.get("stream") is True

    def _chunk(self, piece: str | Thought | Call | Failure | tuple[Call, ...], received: Received) -> bytes:
        if isinstance(piece, Failure):
            return _event(json.loads(self._failure(piece, received).body))
        blocks = self._begun(received)
        calls = piece if isinstance(piece, tuple) else (piece,)
        return b"".join(map(_event, [event for each in calls for event in blocks.say(each)]))

    def _last_chunk(self, stream: Stream, received: Received) -> bytes:
        whole = stream.whole()
        events = [*self._begun(received).stop(), {"type": "ping"}]
        del self._telling[received.ordinal]
        end: Json = {
            "type": "message_delta",
            "delta": {"stop_reason": _finish(whole), "stop_sequence": None},
        }
        if whole.shape is not Shape.NO_USAGE:
            end["usage"] = self._usage(whole, received)
        return b"".join(map(_event, [*events, end, {"type": "message_stop"}]))

    def _begun(self, received: Received) -> "_Blocks":
        if received.ordinal not in self._telling:
            self._telling[received.ordinal] = _Blocks(received)
        return self._telling[received.ordinal]

    def _usage(self, answer: Answer, received: Received) -> Json:
        """Return the counts; of a prompt with marks, its system prompt is written to the cache once, then read."""
        said = (answer.text or "") + "".join(json.dumps(dict(call.arguments)) for call in answer.calls)
        read, written = answer.usage or (tokens_in(received.raw.decode()), tokens_in(said))
        system = json.dumps(received.body.get("system"))
        marked = "cache_control" in system
        known = marked and system in self._kept
        kept = min(read, tokens_in(system)) if marked else 0
        if marked:
            self._kept.add(system)
        made = 0 if known else kept
        for_an_hour = made if '"ttl": "1h"' in system else 0
        return {
            "input_tokens": read - kept,
            "cache_creation_input_tokens": made,
            "cache_creation": {
                "ephemeral_5m_input_tokens": made - for_an_hour,
                "ephemeral_1h_input_tokens": for_an_hour,
            },
            "cache_read_input_tokens": kept if known else 0,
            "output_tokens": written,
        }

    def _failure(self, failure: Failure, received: Received) -> Wire:  # noqa: ARG002  # Ollama's errors name the model
        kind, message = _ERRORS.get(failure.status, ("api_error", "Internal server error"))
        headers = dict(failure.headers)
        if failure.retry_after_s is not None:
            headers["Retry-After"] = str(failure.retry_after_s)
        text = failure.message or message
        if failure.cause is Cause.CONTEXT_EXCEEDED and failure.tokens is not None:
            counted, limit = failure.tokens
            text = f"prompt is too long: {counted} tokens > {limit} maximum"
        error = {"type": "error", "error": {"type": kind, "message": text}}
        body = error if failure.body is None else failure.body
        return Wire(body=_dumped(body), status=failure.status, headers=headers)

    # -- the rest of the API

    async def _aside(self, received: Received) -> Wire:
        if received.headers.get("x-api-key") != self._api_key:
            return self._failure(Failure(status=401), received)
        if (received.method, received.path) != ("GET", "/v1/models"):
            return self._failure(Failure(status=404, message="Not found"), received)
        return self._listed(received)

    def _listed(self, received: Received) -> Wire:
        """Return a page of models: 20 unasked, those behind `after_id` if it is given."""
        if "anthropic-version" not in received.headers:
            return self._failure(
                Failure(status=400, message="anthropic-version: header is required"), received
            )
        after = received.query.get("after_id")
        rest = self._models[self._models.index(after) + 1 :] if after in self._models else self._models
        page = rest[: int(received.query.get("limit", _PAGE))]
        said = {"type": "model", "created_at": "2025-10-01T00:00:00Z"}
        ends = {"first_id": page[0] if page else None, "last_id": page[-1] if page else None}
        listed = [{**said, "id": model, "display_name": model} for model in page]
        return Wire(body=_dumped({"data": listed, "has_more": len(page) < len(rest), **ends}))


class _Blocks:
    """The content blocks of one stream: words of the same kind follow each other in one block."""

    def __init__(self, received: Received) -> None:
        self._opening: list[Json] = [
            {
                "type": "message_start",
                "message": {
                    **_head(received),
                    "content": [],
                    "stop_reason": None,
                },
            }
        ]
        self._place = -1
        self._kind = ""

    def say(self, piece: str | Thought | Call) -> list[Json]:
        match piece:
            case str():
                block = {"type": "text", "text": ""}
                return [*self._in(block), self._delta({"type": "text_delta", "text": piece})]
            case Thought():
                block = {"type": "thinking", "thinking": "", "signature": ""}
                return [*self._in(block), self._delta({"type": "thinking_delta", "thinking": piece.text})]
            case Call():
                before = self.stop()  # two calls are never one block
                whole = _call(piece, self._place + 1)
                begun = [*before, *self._in({**whole, "input": {}})]
                text = json.dumps(whole["input"], ensure_ascii=False) if whole["input"] else ""
                halves = [text[: len(text) // 2], text[len(text) // 2 :]]
                return [
                    *begun,
                    *(
                        self._delta({"type": "input_json_delta", "partial_json": half})
                        for half in halves
                        if half
                    ),
                ]

    def stop(self) -> list[Json]:
        opening, self._opening = self._opening, []
        if not self._kind:
            return opening
        sealed = [self._delta({"type": "signature_delta", "signature": _SIGNATURE})] * (
            self._kind == "thinking"
        )
        self._kind = ""
        return [*opening, *sealed, {"type": "content_block_stop", "index": self._place}]

    def _in(self, block: Json) -> list[Json]:
        if self._kind == block["type"]:
            return []
        before = self.stop()
        self._place += 1
        self._kind = block["type"]
        return [*before, {"type": "content_block_start", "index": self._place, "content_block": block}]

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._place, "delta": delta}


def _blocks(content: object) -> list[Json]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _offered(body: Json, choice: Json) -> tuple[Tool, ...]:
    """Return the tools that the choice leaves."""
    return tuple(
        Tool(name=each["name"], parameters=each.get("input_schema") or {})
        for each in body.get("tools") or ()
        if choice.get("type") != "none" and choice.get("name") in {None, each["name"]}
    )


def _schema(body: Json) -> Json | None:
    wanted = body.get("output_format") or (body.get("output_config") or {}).get("format") or {}
    schema = wanted.get("schema")
    return schema if isinstance(schema, dict) else None


def _call(call: Call, place: int) -> Json:
    called = {"id": call.id or f"toolu_stub_{place}", "name": call.name, "input": dict(call.arguments)}
    return {"type": "tool_use", **called}


def _finish(answer: Answer) -> str:
    if answer.finish == "stop":
        return "tool_use" if answer.calls else "end_turn"
    return {"length": "max_tokens"}.get(answer.finish, answer.finish)


def _head(received: Received) -> Json:
    return {
        "id": f"msg_{received.ordinal}",
        "type": "message",
        "role": "assistant",
        "model": received.body["model"],
    }


def _event(value: Json) -> bytes:
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + _dumped(value) + b"\n\n"


def _dumped(value: Any) -> bytes:  # JSON
    return json.dumps(value, ensure_ascii=False).encode()
