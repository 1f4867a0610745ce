"""Renders our messages as the OpenAI-style dicts that LiteLLM reads, because all provider modules need the same ones."""

import base64
import json
from typing import Any

from pydantic import SecretStr

from app.llm.messages import (
    FilePart,
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolChoice,
    ToolChoiceTool,
    ToolResultPart,
    ToolSpec,
)
from app.llm.types import LLMProvider, LLMRequest

Wire = dict[str, Any]

SEALED_BY_ANTHROPIC = "anthropic:"
"""Stands before a signature of Anthropic's on a thought; Gemini's, which are base64, hold no colon."""


def openai_options(
    request: LLMRequest,
    *,
    model: str,
    api_base: str,
    api_key: SecretStr | None,
    reasoning_effort: str | None = None,
) -> Wire:
    """Return a call to a server that speaks OpenAI's chat completions, in the words of `litellm.acompletion`."""
    options: Wire = {
        "model": model,
        "api_base": api_base,
        "api_key": api_key.get_secret_value() if api_key else None,
        "messages": rendered_messages(request.messages, plain=True),
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_output_tokens,
        "stop": list(request.stop) if request.stop else None,
        "seed": request.seed,
        "reasoning_effort": reasoning_effort,
        "tools": rendered_tools(request.tools) or None,
        "tool_choice": rendered_tool_choice(request.tool_choice)
        if request.tools and request.tool_choice
        else None,
        "response_format": rendered_response_format(request.response_format),
    }
    return {name: value for name, value in options.items() if value is not None}


def rendered_messages(
    messages: tuple[Message, ...], *, sealed_by: LLMProvider | None = None, plain: bool = False
) -> list[Wire]:
    """Return `messages` for LiteLLM; equal histories give equal dicts, whatever ids their providers made up.

    Tool calls are numbered through the whole history (`call_0`, `call_1` ...), and a result follows the latest call
    that had its id.

    Args:
        messages: The history, oldest first.
        sealed_by: Whose signatures go along: only those of the provider that is asked; None for none.
        plain: Whether nothing goes along that OpenAI does not know: no thoughts, no names of tools beside results.
    """
    rendered: list[Wire] = []
    ids: dict[str, str] = {}
    calls = 0
    for message in messages:
        for part in message.content:
            if isinstance(part, ToolCallPart):
                ids[part.id] = f"call_{calls}"
                calls += 1
        match message.role:
            case "assistant":
                rendered.append(_assistant(message, ids, sealed_by, plain=plain))
            case "tool":
                rendered += [
                    _tool_result(part, ids, plain=plain)
                    for part in message.content
                    if isinstance(part, ToolResultPart)
                ]
            case role:
                rendered.append({"role": role, "content": _content(message)})
    return rendered


def rendered_tools(tools: tuple[ToolSpec, ...]) -> list[Wire]:
    """Return the tools as OpenAI function declarations."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                **({} if tool.strict is None else {"strict": tool.strict}),
            },
        }
        for tool in tools
    ]


def rendered_tool_choice(choice: ToolChoice) -> str | Wire:
    """Return the tool choice: a word, or the function that must be called."""
    if isinstance(choice, ToolChoiceTool):
        return {"type": "function", "function": {"name": choice.name}}
    return choice


def rendered_response_format(wanted: ResponseFormat | None) -> Wire | None:
    """Return the response format; None for free text."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "json_object"}
    schema: Wire = {"name": wanted.name, "schema": wanted.json_schema}
    return {
        "type": "json_schema",
        "json_schema": schema if wanted.strict is None else {**schema, "strict": wanted.strict},
    }


def _content(message: Message) -> str | list[Wire]:
    texts = [part.text for part in message.content if isinstance(part, TextPart)]
    if len(texts) == len(message.content):
        return "".join(texts)
    return [_shown(part) for part in message.content if isinstance(part, TextPart | ImagePart | FilePart)]


def _shown(part: TextPart | ImagePart | FilePart) -> Wire:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    url = f"data:{part.media_type};base64,{base64.b64encode(part.data).decode()}"
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file": {"file_data": url}}


def _assistant(message: Message, ids: dict[str, str], sealed_by: LLMProvider | None, *, plain: bool) -> Wire:
    wire: Wire = {"role": "assistant", "content": message.text or None}
    thoughts = [part for part in message.content if isinstance(part, ThinkingPart) and not plain]
    if signed := [part for part in thoughts if sealed_by and _sealer(part) is sealed_by]:
        wire["thinking_blocks"] = [_signed_thought(part) for part in signed]
    if unsigned := [part.text for part in thoughts if part not in signed]:
        wire["reasoning_content"] = "".join(unsigned)
    if calls := [part for part in message.content if isinstance(part, ToolCallPart)]:
        signatures = sealed_by is LLMProvider.GEMINI
        wire["tool_calls"] = [_tool_call(part, ids[part.id], signatures=signatures) for part in calls]
    return wire


def _sealer(part: ThinkingPart) -> LLMProvider | None:
    """Return who signed a thought."""
    if not part.signature:
        return None
    return LLMProvider.ANTHROPIC if part.signature.startswith(SEALED_BY_ANTHROPIC) else LLMProvider.GEMINI


def _signed_thought(part: ThinkingPart) -> Wire:
    signature = part.signature or ""
    if signature.startswith(SEALED_BY_ANTHROPIC):
        signature = signature.removeprefix(SEALED_BY_ANTHROPIC)
        return {"type": "thinking", "thinking": part.text, "signature": signature}
    # LiteLLM reads the text of a signed block as the JSON of a whole Gemini part, else as text that was said aloud.
    thought = json.dumps({"text": part.text, "thought": True}, ensure_ascii=False)
    return {"type": "thinking", "thinking": thought, "signature": signature}


def _tool_call(part: ToolCallPart, wire_id: str, *, signatures: bool) -> Wire:
    wire: Wire = {
        "id": wire_id,
        "type": "function",
        "function": {"name": part.name, "arguments": json.dumps(part.arguments, ensure_ascii=False)},
    }
    if signatures and part.signature:
        wire["provider_specific_fields"] = {"thought_signature": part.signature}
    return wire


def _tool_result(part: ToolResultPart, ids: dict[str, str], *, plain: bool) -> Wire:
    result = {
        "role": "tool",
        "tool_call_id": ids.get(part.id, part.id),
        "name": part.name,
        "content": part.content,
    }
    if plain:
        del result["name"]
    return result
