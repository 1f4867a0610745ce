"""Requests and replies of every shape, for tests that hold the lanes side by side."""

import json
from typing import Any, get_args

from app.llm.messages import (
    FilePart,
    ImagePart,
    Message,
    ResponseFormat,
    ThinkingPart,
    ToolCallPart,
    ToolChoiceTool,
    ToolResultPart,
    ToolSpec,
)
from app.llm.testing import Call, Reply
from app.llm.types import LLMRequest
from tests.wire.conftest import HELLO
from tests.wire.test_requests import CITY, EVERYTHING, HISTORY, PNG, WANTS_CITY, WANTS_JSON, WEATHER

STRICT = ToolSpec(name="f_1", parameters={**CITY, "additionalProperties": False, "$defs": {}}, strict=True)
NESTED = {
    "type": "object",
    "properties": {
        "list": {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
        "deep": {"type": "object", "properties": {"x": {"type": "number", "minimum": 0.5, "enum": [1, 1.0]}}},
    },
    "additionalProperties": False,
}


def asks(*messages: Message, **rest: Any) -> LLMRequest:
    return LLMRequest(messages=messages or HELLO.messages, **rest)


REQUESTS = {
    "text": HELLO,
    "unicode": asks(Message.user('Grüße 🚂 \u2028 \x00 " \\ 日本語')),
    "white space": asks(Message.user("  \n ")),
    "system": asks(Message.system("Be brief."), *HELLO.messages),
    "only system": asks(Message.system("Be brief.")),
    "systems in between": asks(
        Message.system("a"), Message.user("b"), Message.system("c"), Message.user("d", "e")
    ),
    "turns": asks(Message.user("a"), Message.assistant("b"), Message.user("c"), Message.user("d")),
    "assistant last": asks(Message.user("a"), Message.assistant("b")),
    "image": asks(Message.user("What is it?", PNG)),
    "images": asks(
        Message.user(PNG, "and", ImagePart(data=b"\xff\xd8", media_type="image/jpeg"), "differ how?")
    ),
    "history": asks(*HISTORY),
    "everything": EVERYTHING,
    "calls without results": asks(
        Message.user("?"), Message.assistant(ToolCallPart(id="a", name="weather", arguments={}))
    ),
    "call with a long integer": asks(
        Message.user("?"),
        Message.assistant(ToolCallPart(id="a", name="weather", arguments={"n": 10**30})),
        Message.tool(ToolResultPart(id="a", name="weather", content="")),
    ),
    "result that is JSON": asks(
        Message.user("?"),
        Message.assistant(ToolCallPart(id="a", name="weather", arguments={"a": [1, None, "ü"]})),
        Message.tool(ToolResultPart(id="a", name="weather", content='{"deg": 3}')),
    ),
    "result without its call": asks(
        Message.user("?"), Message.tool(ToolResultPart(id="lost", name="weather", content="rain"))
    ),
    "thoughts": asks(
        Message.user("?"), Message.assistant(ThinkingPart(text="hm"), "b"), Message.user("and?")
    ),
    "signed thoughts": asks(
        Message.user("?"), Message.assistant(ThinkingPart(text="hm", signature="U2ln"), "b"), Message.user("?")
    ),
    "tool": asks(tools=(WEATHER,)),
    "tools": asks(tools=(WEATHER, STRICT, ToolSpec(name="none"), ToolSpec(name="nested", parameters=NESTED))),
    "tools with a long integer": asks(
        tools=(ToolSpec(name="big", parameters={"type": "object", "properties": {"x": {"const": 10**30}}}),)
    ),
    **{
        f"tool choice {choice if isinstance(choice, str) else 'by name'}": asks(
            tools=(WEATHER, STRICT), tool_choice=choice
        )
        for choice in ("auto", "none", "required", ToolChoiceTool(name="weather"))
    },
    "schema": WANTS_CITY,
    "schema, nested": asks(response_format=ResponseFormat.of_schema(NESTED)),
    "json": WANTS_JSON,
    "schema and tools": WANTS_CITY.model_copy(update={"tools": (WEATHER,)}),
    **{f"thinking {value}": asks(thinking=value) for value in (True, False, "low", "medium", "high")},
    "cold": asks(temperature=0.0, seed=0),
    "hot": asks(temperature=2.0, top_p=1.0, seed=-(2**31)),
    "limits": asks(max_output_tokens=1, stop=("END", "\n")),
    "no stop": asks(stop=()),
}  # fmt: skip

FILES = {
    **{
        media_type: asks(Message.user("What is it?", FilePart(data=b"\x00\xff%PDF", media_type=media_type)))
        for media_type in get_args(FilePart.model_fields["media_type"].annotation)
    },
    "file alone": asks(Message.user(FilePart(data=b"RIFF", media_type="audio/wav"))),
    "files between texts": asks(
        Message.user("a", FilePart(data=b"ID3", media_type="audio/mp3"), PNG, "b", FilePart(data=b"f", media_type="video/mp4"))
    ),
    "file of a tool": asks(
        Message.user("?"),
        Message.assistant(ToolCallPart(id="a", name="weather", arguments={})),
        Message.tool(ToolResultPart(id="a", name="weather", content="See file 1.")),
        Message.user("<file>", FilePart(data=b"%PDF", media_type="application/pdf"), "</file>"),
    ),
}  # fmt: skip
"""What Gemini reads and Ollama does not."""


# -- replies: counts are given, since a stub counts white space that one lane sends and the other does not


def ollama(message: Any, **rest: Any) -> Reply:
    return Reply.raw(json.dumps({"model": "m", "message": message, "done": True, **rest}).encode())


def said(text: Any, **rest: Any) -> Reply:
    return ollama({"role": "assistant", "content": text, **rest})


def called(*calls: Any, **rest: Any) -> Reply:
    return said("", tool_calls=list(calls), **rest)


def function(name: Any = "weather", arguments: Any = None, **rest: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": {} if arguments is None else arguments}, **rest}


def gemini(*parts: Any, finish: Any = "STOP", **rest: Any) -> Reply:
    return candidate({"content": {"role": "model", "parts": list(parts)}, "finishReason": finish}, **rest)


def candidate(*candidates: Any, **rest: Any) -> Reply:
    return Reply.raw(json.dumps({"candidates": list(candidates), **rest}).encode())


def invoked(name: Any = "weather", args: Any = None, **rest: Any) -> dict[str, Any]:
    return {"functionCall": {"name": name, "args": {} if args is None else args}, **rest}


EITHER_SAYS = {
    "text": Reply.text("Grüße 🚂", usage=(10, 5)),
    "empty": Reply.text("", usage=(1, 0)),
    "white space": Reply.text(" \n", usage=(1, 1)),
    "thinking": Reply.text("Four.", thinking="2 + 2", usage=(1, 9)),
    "only thoughts": Reply.text("", thinking="hm", usage=(1, 9)),
    "length": Reply.text("On and", finish="length", usage=(9, 5)),
    "thoughts up to the length": Reply.text("", thinking="hm", finish="length", usage=(1, 9)),
    "word of nobody": Reply.text("x", finish="whatever", usage=(1, 9)),
    "no usage": Reply.no_usage("Fine."),
    "call": Reply.tool_call("weather", {"city": "Oslo"}, more=[("weather", {"city": "Ålesund"})], usage=(1, 9)),
    "calls after text": Reply.tool_calls([Call(name="weather", arguments={}, id="6b1f")], text="Hm.", usage=(1, 9)),
}  # fmt: skip

OLLAMA_SAYS = {
    **{f"content {text!r}": said(text) for text in (
        None, 0, False, [], [1], {"a": 1}, "\x00", "<think>a</think>b", "<thinking>a</thinking>b", " <think>a</think>b",
        "<budget:thinking>a</budget:thinking>b", "<think>a</thinking>b", "<think>\n\n</think>\n\nb", "<think>a",
        "b<think>a</think>c", "<think>a</think>", "<think></think>b", "<think>a</think>b<think>c</think>d", "</think>b",
    )},
    "no content": ollama({"role": "assistant"}),
    "message null": ollama(None),
    "message a list": ollama([]),
    **{f"thinking {value!r}": said("<think>a</think>b", thinking=value) for value in (None, "", "t", 5, ["t"])},
    **{f"tool calls {value!r}": said("b", tool_calls=value) for value in (None, [], {}, "", [1], "ab", {"a": 1})},
    **{f"done reason {value!r}": ollama({"content": "b"}, done_reason=value) for value in (
        None, "", "stop", "length", "load", "unload", "what",
    )},
    "load": Reply.load(),
    "unload": ollama({"role": "assistant", "content": ""}, done_reason="unload"),
    "arguments as text": called(function(arguments='{"city": "Oslo"}')),
    "arguments as empty text": called(function(arguments="")),
    **{f"arguments {value!r}": called(function(arguments=value)) for value in (
        "{broken", "[1]", '{"x": NaN}', '{"x": 1e999}', [1], 5, {"x": 10**30}, {"x": 2**63}, {"x": 1e300}, {"x": -0.0},
        {"x": float("nan")}, {"x": float("inf")}, {"x": {"y": [None, True, "ü\ud800"]}},
    )},
    "no arguments": called({"function": {"name": "weather"}}),
    "parameters": called({"function": {"name": "weather", "parameters": {"city": "Oslo"}}}),
    "parameters that are none": called({"function": {"name": "weather", "parameters": "x"}}),
    "call without function": called({"name": "weather"}),
    "function null": called({"function": None}),
    **{f"name {value!r}": called(function(value)) for value in (None, "", 5)},
    "name missing": called({"function": {"arguments": {}}}),
    "own id": called(function(id="abc"), function(id="abc"), function("other", {"a": 1}, id="x", type="function")),
    "call and text": said("Look.", tool_calls=[function()]),
    "call and thinking": said("", thinking="hm", tool_calls=[function()]),
    "NaN counts": ollama({"content": "b"}, prompt_eval_count=float("nan"), eval_count=2),
    **{f"count {value!r}": ollama({"content": "b"}, prompt_eval_count=value) for value in (
        0, -1, 1.5, 2.0, True, "12", 2**31 - 1, 2**31, 2**63, 2**64, 10**30, [],
    )},
    "window full": Reply.truncated_context("fine"),
    "surrogate": Reply.raw(b'{"message": {"content": "a\\ud800b \\ud83d\\ude82"}, "done": true}'),
    "no UTF-8": Reply.raw(b'{"message": {"content": "a\xffb"}}'),
    "twice the same key": Reply.raw(b'{"message": {"content": "a", "content": "b"}}'),
    "control character": Reply.raw(b'{"message": {"content": "a\nb"}}'),
    "byte order mark": Reply.raw(b'\xef\xbb\xbf{"message": {"content": "a"}}'),
    "two objects": Reply.raw(b'{"message": {"content": "a"}}\n{"message": {"content": "b"}}'),
    "white space around": Reply.raw(b' \n{"message": {"content": "a"}}\n\n'),
    "nothing but white space": Reply.raw(b" \n"),
    "null": Reply.raw(b"null"),
    "deep": Reply.raw(b'{"message": {"content": "a"}, "x": ' + b"[" * 500 + b"]" * 500 + b"}"),
    "deeper": Reply.raw(b'{"message": {"content": "a"}, "x": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
}  # fmt: skip

GEMINI_SAYS = {
    "parts": gemini({"text": "a"}, {"text": "b"}, {"text": ""}),
    "no parts": candidate({"content": {"role": "model"}, "finishReason": "STOP"}),
    "parts null": candidate({"content": {"parts": None}, "finishReason": "STOP"}),
    "parts empty": gemini(),
    "part empty": gemini({}, {"text": "a"}),
    "content null": candidate({"content": None, "finishReason": "STOP"}),
    "text null": gemini({"text": None}, {"text": "a"}),
    "text a number": gemini({"text": 5}),
    "thoughts": gemini({"text": "t", "thought": True}, {"text": "u", "thought": True}, {"text": "a"}),
    "thoughts after text": gemini({"text": "a"}, {"text": "t", "thought": True}, {"text": "b"}),
    "signed": gemini({"text": "t", "thought": True, "thoughtSignature": "U2ln"}, {"text": "a", "thoughtSignature": "eA"}),
    "thought empty": gemini({"text": "", "thought": True, "thoughtSignature": "U2ln"}, {"text": "a"}),
    "thought without text": gemini({"thought": True}, {"text": "a"}),
    "thought false": gemini({"text": "t", "thought": False}, {"text": "a", "thought": None}),
    "think tags": gemini({"text": "<think>a</think>b"}),
    "call": gemini(invoked(args={"city": "Ålesund"}), invoked("other", {"n": 10**30})),
    "call signed": gemini(invoked(thoughtSignature="U2ln"), invoked(), invoked(thoughtSignature="")),
    "call with id": gemini({"functionCall": {"id": "own", "name": "weather", "args": {}}}),
    "call between texts": gemini({"text": "a"}, invoked(), {"text": "b"}),
    "call and thought": gemini({"text": "t", "thought": True}, invoked(thoughtSignature="U2ln")),
    "call null": gemini({"functionCall": None}, {"text": "a"}),
    "call a text": gemini({"functionCall": "weather"}),
    "call without name": gemini({"functionCall": {"args": {}}}),
    **{f"name {value!r}": gemini(invoked(value)) for value in ("", None, 5)},
    **{f"args {value!r}": gemini(invoked(args=value)) for value in (
        [], [1], "", "abc", '{"a": 1}', 5, {"x": 2**63}, {"x": -0.0}, {"x": 1e300}, {"x": float("nan")},
        {"x": float("-inf")}, {"x": [None, {"y": "\ud800"}]},
    )},
    "args null": gemini({"functionCall": {"name": "weather", "args": None}}),
    "other parts": gemini({"executableCode": {"code": "1"}}, {"text": "a"}),
    "image in the answer": gemini({"inlineData": {"mimeType": "image/png", "data": "AAAA"}}, {"text": "a"}),
    **{f"finish {reason}": gemini({"text": "a"}, finish=reason) for reason in (
        "STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "LANGUAGE", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII",
        "MALFORMED_FUNCTION_CALL", "IMAGE_SAFETY", "FINISH_REASON_UNSPECIFIED", "UNEXPECTED_TOOL_CALL", "what", "",
        None, "TOO_MANY_TOOL_CALLS", "IMAGE_PROHIBITED_CONTENT", "NO_IMAGE", "IMAGE_OTHER", "ESCALATION",
    )},
    **{f"call, finish {reason}": gemini(invoked(), finish=reason) for reason in (
        "STOP", "MAX_TOKENS", "SAFETY", "LANGUAGE", "OTHER", "MALFORMED_FUNCTION_CALL",
    )},
    "empty, MAX_TOKENS": gemini(finish="MAX_TOKENS"),
    "no finish": candidate({"content": {"parts": [{"text": "a"}]}}),
    "candidates": candidate(
        {"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}, {"content": {"parts": [{"text": "b"}]}}
    ),
    "first candidate hollow": candidate({"index": 0}, {"content": {"parts": [{"text": "b"}]}, "index": 1}),
    "all candidates hollow": candidate({"index": 0}),
    "second candidate broken": candidate({"content": {"parts": [{"text": "a"}]}}, {"content": {"parts": [{"text": 5}]}}),
    "candidates null": Reply.raw(b'{"candidates": null}'),
    "no candidates": Reply.raw(b'{"usageMetadata": {"promptTokenCount": 9}}'),
    "blocked": Reply.raw(b'{"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}'),
    "blocked beside a text": gemini({"text": "a"}, promptFeedback={"blockReason": "OTHER"}),
    "feedback null": gemini({"text": "a"}, promptFeedback=None),
    "feedback without reason": gemini({"text": "a"}, promptFeedback={"safetyRatings": []}),
    "malformed call": candidate({"content": {}, "finishReason": "MALFORMED_FUNCTION_CALL"}),
    **{f"usage {counts!r}": gemini({"text": "a"}, usageMetadata=counts) for counts in (
        None, {}, [1], {"promptTokenCount": 9}, {"promptTokenCount": -9, "candidatesTokenCount": 4},
        {"promptTokenCount": 9, "cachedContentTokenCount": 5, "candidatesTokenCount": 4, "totalTokenCount": 13},
        {"promptTokenCount": 9, "candidatesTokenCount": 4, "thoughtsTokenCount": 6, "totalTokenCount": 19},
        {"promptTokenCount": 9, "candidatesTokenCount": 10, "thoughtsTokenCount": 6, "totalTokenCount": 19},
        {"promptTokenCount": 9, "toolUsePromptTokenCount": 2, "candidatesTokenCount": 4},
        {"promptTokenCount": 2**64, "candidatesTokenCount": 1e2},
    )},
    "surrogate": Reply.raw(b'{"candidates": [{"content": {"parts": [{"text": "a\\ud800b"}]}}]}'),
}  # fmt: skip

REPLIES = {"ollama": EITHER_SAYS | OLLAMA_SAYS, "gemini": EITHER_SAYS | GEMINI_SAYS}
