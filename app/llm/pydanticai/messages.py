"""PydanticAI's history as our messages, because a part that is not understood must be refused, never dropped."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, takewhile
from typing import Any

from pydantic_ai import messages as pai

from app.llm.messages import Message, TextPart, ThinkingPart, ToolCallPart, ToolResultPart
from app.llm.pydanticai.internals import sendable_request_parts
from app.llm.pydanticai.parts import BETWEEN_TEXTS, Inline, refused, shown_parts
from app.llm.types import LLMProvider

SIGNATURE = "signature"
"""Where a tool call's opaque provider state stands in PydanticAI's `provider_details`."""


def neutral_messages(
    history: Sequence[pai.ModelMessage],
    *,
    instructions: Iterable[str],
    provider: LLMProvider,
    inline: Inline,
) -> tuple[Message, ...]:
    """Return the history as `provider` may see it: one system message first, then the turns, oldest first.

    Args:
        history: Prepared messages (`Model.prepare_messages`): system prompts lead, retries are plain parts.
        instructions: Follow the system prompts in the system message.
        provider: Whose opaque state goes along; that of others is left out.
        inline: Frames the text of a file.

    Raises:
        UserError: A part has no place in our messages; it is named.
    """
    turns = [turn for message in history for turn in _turns(message, provider, inline)]
    leading = list(takewhile(lambda turn: turn.role == "system", turns))
    standing = BETWEEN_TEXTS.join([*(turn.text for turn in leading), *instructions])
    system = [Message.system(standing)] if standing else []
    return (*system, *turns[len(leading) :])


def _turns(message: pai.ModelMessage, provider: LLMProvider, inline: Inline) -> Iterator[Message]:
    if isinstance(message, pai.ModelResponse):
        yield from _assistant(message, provider, inline)
        return
    sendable = sendable_request_parts(message.parts)  # a summary of earlier turns becomes user text
    for _, parts in groupby(sendable, key=lambda part: isinstance(part, pai.ToolReturnPart)):
        yield from _requested(list(parts), inline)


def _requested(parts: list[pai.ModelRequestPart], inline: Inline) -> Iterator[Message]:
    """Yield the turns of parts that are all tool results, or none of them."""
    if returned := [part for part in parts if isinstance(part, pai.ToolReturnPart)]:
        yield from _returned(returned, inline)
        return
    for part in parts:
        if isinstance(part, pai.SystemPromptPart):
            yield Message.system(part.content)
        elif isinstance(part, pai.UserPromptPart):
            yield Message.user(*shown_parts(part.content, inline))
        else:
            raise refused(part)


def _returned(parts: list[pai.ToolReturnPart[Any]], inline: Inline) -> Iterator[Message]:
    """Yield the results, which are texts, then a turn of the files in them, each framed with the call it belongs to."""
    results, files = [], list[pai.UserContent]()
    for part in parts:
        text, shown = part.model_response_str_and_user_content()
        results.append(ToolResultPart(id=part.tool_call_id, name=part.tool_name, content=text))
        files += shown
    yield Message.tool(*results)
    if files:
        yield Message.user(*shown_parts(files, inline))


def _assistant(response: pai.ModelResponse, provider: LLMProvider, inline: Inline) -> Iterator[Message]:
    for compacted, parts in groupby(response.parts, key=lambda part: isinstance(part, pai.CompactionPart)):
        if compacted:
            yield from _requested([_summary(part) for part in parts], inline)
        elif said := [neutral for part in parts if (neutral := _said(part, provider))]:
            yield Message.assistant(*said)  # an empty reply that was retried says nothing


def _summary(part: Any) -> pai.ModelRequestPart:
    """Return what another provider made of earlier turns, framed as PydanticAI frames summaries of its own."""
    if not part.content:
        raise refused(
            part, "its summary is encrypted; give the history without it, or the agent its provider"
        )
    return next(sendable_request_parts([pai.CompactionPart(part.content)]))


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
    raise refused(part)
