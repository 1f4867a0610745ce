"""PydanticAI's history as our messages, because a part that is not understood must be refused, never dropped."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, takewhile
from typing import Any

from pydantic_ai import messages as pai
from pydantic_ai.exceptions import UserError

from app.llm.messages import Message, TextPart, ThinkingPart, ToolCallPart, ToolResultPart
from app.llm.types import LLMProvider

SIGNATURE = "signature"
"""Where a tool call's opaque provider state stands in PydanticAI's `provider_details`."""

_BETWEEN_TEXTS = "\n\n"


def neutral_messages(
    history: Sequence[pai.ModelMessage], *, instructions: Iterable[str], provider: LLMProvider
) -> tuple[Message, ...]:
    """Return the history as `provider` may see it: one system message first, then the turns, oldest first.

    Args:
        history: Prepared messages (`Model.prepare_messages`): system prompts lead, retries are plain parts.
        instructions: Follow the system prompts in the system message.
        provider: Whose opaque state goes along; that of others is left out.

    Raises:
        UserError: A part is neither text, thinking, a tool call nor a tool result in text or JSON; it is named.
    """
    turns = [turn for message in history for turn in _turns(message, provider)]
    leading = list(takewhile(lambda turn: turn.role == "system", turns))
    standing = _BETWEEN_TEXTS.join([*(turn.text for turn in leading), *instructions])
    system = [Message.system(standing)] if standing else []
    return (*system, *turns[len(leading) :])


def _turns(message: pai.ModelMessage, provider: LLMProvider) -> Iterator[Message]:
    if isinstance(message, pai.ModelResponse):
        yield from _assistant(message, provider)
        return
    for _, parts in groupby(message.parts, key=lambda part: isinstance(part, pai.ToolReturnPart)):
        yield from _requested(list(parts))


def _requested(parts: list[pai.ModelRequestPart]) -> Iterator[Message]:
    """Yield the turns of parts that are all tool results, or none of them."""
    if results := [_result(part) for part in parts if isinstance(part, pai.ToolReturnPart)]:
        yield Message.tool(*results)
        return
    for part in parts:
        if isinstance(part, pai.SystemPromptPart):
            yield Message.system(part.content)
        elif isinstance(part, pai.UserPromptPart):
            yield Message.user(_user_text(part))
        else:
            raise _refused(part)


def _user_text(prompt: pai.UserPromptPart) -> str:
    items = [prompt.content] if isinstance(prompt.content, str) else prompt.content
    return _BETWEEN_TEXTS.join(
        _item_text(item)
        for item in items
        if not isinstance(item, pai.CachePoint)  # a price mark, no content
    )


def _item_text(item: Any) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, pai.TextContent):
        return item.content
    raise _refused(item)


def _result(part: pai.ToolReturnPart[Any]) -> ToolResultPart:
    if part.files:
        raise _refused(part.files[0])
    return ToolResultPart(id=part.tool_call_id, name=part.tool_name, content=part.model_response_str())


def _assistant(response: pai.ModelResponse, provider: LLMProvider) -> Iterator[Message]:
    parts = [neutral for part in response.parts if (neutral := _said(part, provider))]
    if parts:  # an answer without any part (an empty reply that was retried) says nothing
        yield Message.assistant(*parts)


def _said(
    part: pai.ModelResponsePart, provider: LLMProvider
) -> TextPart | ThinkingPart | ToolCallPart | None:
    own = getattr(part, "provider_name", None) == provider
    if isinstance(part, pai.TextPart):
        return TextPart(text=part.content) if part.content else None
    if isinstance(part, pai.ThinkingPart):
        signature = part.signature if own else None
        return ThinkingPart(text=part.content, signature=signature) if part.content or signature else None
    if isinstance(part, pai.ToolCallPart):
        return ToolCallPart(
            id=part.tool_call_id,
            name=part.tool_name,
            arguments=part.args_as_dict(),
            signature=(part.provider_details or {}).get(SIGNATURE) if own else None,
        )
    raise _refused(part)


def _refused(part: object) -> UserError:
    return UserError(
        f"{type(part).__name__} cannot be sent through this model: it carries text, thinking, tool calls and "
        "tool results in text or JSON. Convert it, or give the agent another model"
    )
