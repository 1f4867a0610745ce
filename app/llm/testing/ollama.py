"""Speak Ollama's HTTP API from a script, field by field as the real server does, so that clients meet its quirks."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, ClassVar, Final

from app.llm.testing.content import (
    Answer,
    Call,
    Cause,
    End,
    Failure,
    Json,
    Provider,
    Shape,
    Stream,
    Thought,
    Wire,
)
from app.llm.testing.derive import Ask, Tool, tokens_in
from app.llm.testing.gate import Gate
from app.llm.testing.pulling import Line, pull_lines, streamed, whole
from app.llm.testing.record import Received
from app.llm.testing.server import StubServer

_DEFAULT_NUM_CTX: Final = 4_096
_ALL_CAPABILITIES: Final = ("completion", "tools", "vision", "thinking")
_NS_PER_TOKEN: Final = 1_000_000
_NAME: Final = re.compile(r"[\w.-]+(?:[:/][\w.-]+)*")
_DURATION: Final = re.compile(r"0|-?(?:\d+(?:\.\d+)?(?:ns|us|ms|h|m|s))+")  # as Go reads it
_TEXTS: Final = {
    400: "invalid request",
    401: "unauthorized",
    404: "model '{model}' not found",
    429: "too many requests",
    500: "llama runner process has terminated: exit status 2",
    503: "server busy, please try again.  maximum pending requests exceeded",
}


class StubOllama(StubServer):
    """An Ollama with `models` pulled, and `library` to pull from; with an `api_key`, behind a proxy that wants it.

    `capabilities` (of all models, or a mapping from some) and `context_length` are what /api/show reports; a request
    that needs tools, images or thinking is refused as Ollama refuses it where the capability is left out.

    Example:
        >>> from app.llm.testing import Reply, StubOllama
        >>> with StubOllama(models=("llama3.2",)) as stub:
        ...     stub.script(Reply.text("hi"), Reply.busy())
    """

    provider: ClassVar[Provider] = "ollama"
    _stream_type: ClassVar[str] = "application/x-ndjson"

    def __init__(
        self,
        models: Iterable[str] = ("llama3.2",),
        *,
        capabilities: Iterable[str] | Mapping[str, Iterable[str]] = _ALL_CAPABILITIES,
        context_length: int = 131_072,
        version: str = "0.12.6",
        library: Iterable[str] = (),
        api_key: str | None = None,
    ) -> None:
        super().__init__()
        self._models = {_tagged(model): model for model in models}
        one_for_all = None if isinstance(capabilities, Mapping) else tuple(capabilities)
        said = capabilities if isinstance(capabilities, Mapping) else {}
        self._capabilities = {
            tagged: one_for_all or tuple(said.get(model, _ALL_CAPABILITIES))
            for tagged, model in self._models.items()
        }
        self._context_length = context_length
        self._version = version
        self._library = {_tagged(model) for model in library}
        self._api_key = api_key
        self._pulls: list[tuple[tuple[Line, ...], End]] = []
        self._show_gates: tuple[Gate, ...] = ()
        self._renewed: Counter[str] = Counter()

    def renew(self, model: str) -> None:
        """Have other weights under a name, as after another `ollama pull`: /api/tags lists another digest."""
        self._renewed[_tagged(model)] += 1

    def hang_show(self) -> Gate:
        """Keep every POST /api/show from now on waiting until the gate is released."""
        gate = Gate(self._release_show)
        self._show_gates += (gate,)
        return gate

    def script_pull(self, *lines: Line, end: End = End.LAST) -> None:
        """Answer the next POST /api/pull with these lines; `end` may break its connection."""
        self._pulls.append((lines, end))

    def _release_show(self, gate: Gate) -> None:
        self._show_gates = tuple(each for each in self._show_gates if each is not gate)
        self._listener.soon(gate.open_in_loop)

    # -- POST /api/chat

    def _is_model_call(self, method: str, path: str) -> bool:
        return method == "POST" and path == "/api/chat"

    def _refusal(self, received: Received) -> Failure | None:
        return Failure(status=401) if self._is_stranger(received) else self._refusal_of(received.body)

    def _refusal_of(self, body: Any) -> Failure | None:
        if not isinstance(body, dict):
            return Failure(status=400, message="invalid character in request body")
        model = str(body.get("model", ""))
        if _tagged(model) not in self._models:
            return Failure(status=404)
        able = self._capabilities[_tagged(model)]
        if body.get("tools") and "tools" not in able:
            return Failure(status=400, cause=Cause.NO_TOOLS)
        if body.get("think") and "thinking" not in able:
            return Failure(status=400, message=f'"{model}" does not support thinking')
        return None

    def _ask(self, received: Received) -> Ask:
        body: Json = received.body
        messages: list[Json] = body.get("messages") or []
        users = [place for place, message in enumerate(messages) if message.get("role") == "user"]
        since = messages[users[-1] + 1 :] if users else messages
        wanted = body.get("format")
        return Ask(
            text=str(messages[users[-1]].get("content") or "") if users else "",
            tools=tuple(_tool(each["function"]) for each in body.get("tools") or ()),
            called=tuple(call["function"]["name"] for each in since for call in each.get("tool_calls") or ()),
            results=tuple(str(each.get("content")) for each in since if each.get("role") == "tool"),
            schema=wanted if isinstance(wanted, dict) else {} if wanted == "json" else None,
        )

    def _answer(self, answer: Answer, received: Received) -> Wire:
        body: Json = received.body
        message: Json = {"role": "assistant", "content": answer.text or ""}
        if answer.thinking is not None:
            message["thinking"] = answer.thinking
        if answer.calls:
            message["tool_calls"] = [_call(call, place) for place, call in enumerate(answer.calls)]
        figures = _figures(answer, received)
        return Wire(body=_dumped({**_head(body), "message": message, **_end(answer), **figures}))

    def _wants_stream(self, received: Received) -> bool:
        return received.body.get("stream") is not False

    def _chunk(self, piece: str | Thought | Call | Failure | tuple[Call, ...], received: Received) -> bytes:
        message: Json = {"role": "assistant", "content": ""}
        match piece:
            case Failure():
                return self._failure(piece, received).body + b"\n"
            case str():
                message["content"] = piece
            case Thought():
                message["thinking"] = piece.text
            case _:
                # Whatever their number: Ollama counts the calls of each chunk anew.
                calls = piece if isinstance(piece, tuple) else (piece,)
                message["tool_calls"] = [_call(call, 0) for call in calls]
        return _dumped({**_head(received.body), "message": message, "done": False}) + b"\n"

    def _last_chunk(self, stream: Stream, received: Received) -> bytes:
        whole, message = stream.whole(), {"role": "assistant", "content": ""}
        figures = _figures(whole, received)
        return _dumped({**_head(received.body), "message": message, **_end(whole), **figures}) + b"\n"

    def _failure(self, failure: Failure, received: Received) -> Wire:
        asked = received.body.get("model", "") if isinstance(received.body, dict) else ""
        headers = dict(failure.headers)
        if failure.retry_after_s is not None:
            headers["Retry-After"] = str(failure.retry_after_s)
        text = _cause_text(failure) or failure.message or _TEXTS.get(failure.status, "unexpected error")
        shown = _tagged(asked) if failure.cause is Cause.NO_TOOLS else asked
        body = {"error": text.replace("{model}", shown)} if failure.body is None else failure.body
        return Wire(body=_dumped(body), status=failure.status, headers=headers)

    # -- the rest of the API

    def _is_stranger(self, received: Received) -> bool:
        return (
            self._api_key is not None and received.headers.get("authorization") != f"Bearer {self._api_key}"
        )

    async def _aside(self, received: Received) -> Wire:
        if self._is_stranger(received):
            return self._failure(Failure(status=401), received)
        makes = {("POST", "/api/pull"): self._pull, ("POST", "/api/generate"): self._load}
        make = makes.get((received.method, received.path))
        return await self._told(received) if make is None else make(received)

    async def _told(self, received: Received) -> Wire:
        """Answer a question."""
        match received.method, received.path:
            case "GET", "/api/version":
                return Wire(body=_dumped({"version": self._version}))
            case "GET", "/api/tags" | "/api/ps":
                return Wire(
                    body=_dumped({"models": [_listed(name, self._renewed[name]) for name in self._models]})
                )
            case "POST", "/api/show":
                return await self._show(received)
            case "GET" | "HEAD", "/":
                return Wire(body=b"Ollama is running", content_type="text/plain; charset=utf-8")
            case _:
                return Wire(body=b"404 page not found", status=404, content_type="text/plain")

    def _pull(self, received: Received) -> Wire:
        asked = str((received.body or {}).get("model") or "")
        if not _NAME.fullmatch(asked):
            return Wire(body=_dumped({"error": "invalid model name"}), status=400)
        known = _tagged(asked) in self._library or _tagged(asked) in self._models
        lines, end = self._pulls.pop(0) if self._pulls else (pull_lines(known=known), End.LAST)
        if {"status": "success"} in lines:
            self._models.setdefault(_tagged(asked), asked)
            self._capabilities.setdefault(_tagged(asked), _ALL_CAPABILITIES)
        return whole(lines) if received.body.get("stream") is False else streamed(lines, end)

    def _load(self, received: Received) -> Wire:
        """Answer a request without a prompt, which loads a model, or sends it away."""
        body = received.body or {}
        asked = str(body.get("model") or "")
        if _tagged(asked) not in self._models:
            return Wire(body=_dumped({"error": f"model '{asked}' not found"}), status=404)
        kept = body.get("keep_alive")
        if isinstance(kept, str) and not _DURATION.fullmatch(kept):
            return Wire(body=_dumped({"error": f'time: missing unit in duration "{kept}"'}), status=400)
        if body.get("prompt"):
            return Wire(body=_dumped({"error": "the stub runs models by /api/chat only"}), status=501)
        reason = "unload" if kept in {0, "0"} else "load"
        return Wire(body=_dumped({**_head(body), "response": "", "done": True, "done_reason": reason}))

    async def _show(self, received: Received) -> Wire:
        for gate in self._show_gates:
            await gate.passed()
        body = received.body if isinstance(received.body, dict) else {}
        asked = body.get("model") or body.get("name") or ""
        if _tagged(asked) not in self._models:
            return Wire(body=_dumped({"error": f"model '{asked}' not found"}), status=404)
        info = {
            "general.architecture": "llama",
            "general.parameter_count": 3_212_749_888,
            "llama.context_length": self._context_length,
            "llama.embedding_length": 3_072,
        }
        shown = {
            "modelfile": f"FROM {asked}\n",
            "parameters": 'stop "<|eot_id|>"',
            "template": "{{ .Prompt }}",
            "details": _details(),
            "model_info": info,
            "capabilities": list(self._capabilities[_tagged(asked)]),
            "modified_at": _now(),
        }
        return Wire(body=_dumped(shown))


def _head(body: Json) -> Json:
    return {"model": body["model"], "created_at": _now()}


def _end(answer: Answer) -> Json:
    return {"done_reason": "load" if answer.shape is Shape.LOAD else answer.finish, "done": True}


def _figures(answer: Answer, received: Received) -> Json:
    """Durations in nanoseconds and token counts, as the last object of an answer carries them."""
    if answer.shape is Shape.LOAD:
        return {}
    durations = {"total_duration": 50 * _NS_PER_TOKEN, "load_duration": 10 * _NS_PER_TOKEN}
    if answer.shape is Shape.NO_USAGE:
        return durations
    said = (answer.text or "") + "".join(json.dumps(dict(call.arguments)) for call in answer.calls)
    read, written = answer.usage or (tokens_in(received.raw.decode()), tokens_in(said))
    if answer.shape is Shape.FULL_WINDOW:
        num_ctx = int((received.body.get("options") or {}).get("num_ctx", _DEFAULT_NUM_CTX))
        written = min(written, num_ctx - 1)
        read = num_ctx - written
    return {
        "total_duration": durations["total_duration"] + (read + written) * _NS_PER_TOKEN,
        "load_duration": durations["load_duration"],
        "prompt_eval_count": read,
        "prompt_eval_duration": read * _NS_PER_TOKEN,
        "eval_count": written,
        "eval_duration": written * _NS_PER_TOKEN,
    }


def _cause_text(failure: Failure) -> str | None:
    match failure.cause:
        case Cause.CONTEXT_EXCEEDED:
            return "the input length exceeds the context length"
        case Cause.NO_TOOLS:
            return "registry.ollama.ai/library/{model} does not support tools"
        case _:
            return None


def _tool(function: Json) -> Tool:
    return Tool(name=function["name"], parameters=function.get("parameters") or {})


def _call(call: Call, place: int) -> Json:
    function = {"index": place, "name": call.name, "arguments": dict(call.arguments)}
    return {"function": function} if call.id is None else {"id": call.id, "function": function}


def _tagged(model: str) -> str:
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _listed(name: str, pulls: int) -> Json:
    return {
        "name": name,
        "model": name,
        "modified_at": _now(),
        "size": 2_019_393_189,
        "digest": sha256(f"{name} {pulls}".encode()).hexdigest(),
        "details": _details(),
    }


def _details() -> Json:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "3.2B",
        "quantization_level": "Q4_K_M",
    }


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _dumped(value: Any) -> bytes:  # JSON
    return json.dumps(value, ensure_ascii=False).encode()
