"""PydanticAI's history as our messages, because a part that is not understood must be refused, never dropped."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
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
    walk = _Walk(provider=provider, inline=inline)
    turns = [turn for message in history for turn in walk.turns(message)]
    leading = list(takewhile(lambda turn: turn.role == "system", turns))
    standing = BETWEEN_TEXTS.join([*(turn.text for turn in leading), *instructions])
    system = [Message.system(standing)] if standing else []
    return (*system, *turns[len(leading) :])


def refuse_speech_without_words(history: Sequence[pai.ModelMessage]) -> None:
    """Refuse what PydanticAI's preparation would drop: speech whose sound was kept and whose transcript is missing.

    Raises:
        UserError: There is such a part.
    """
    for message in history:
        for part in message.parts:
            if isinstance(part, pai.SpeechPart) and part.audio is not None and not part.transcript:
                raise refused(part, "it has no transcript; a user's sound may be given as BinaryContent")


@dataclass(slots=True, kw_only=True)
class _Walk:
    """One pass through a history, oldest message first."""

    provider: LLMProvider
    inline: Inline
    ids: dict[str, str] = field(default_factory=dict)
    """What a call that was met is named where a text tells of it: by its number, as on the wire."""
    calls: int = 0

    def turns(self, message: pai.ModelMessage) -> Iterator[Message]:
        if isinstance(message, pai.ModelResponse):
            yield from self._answered(message)
            return
        sendable = sendable_request_parts(message.parts)  # a summary of earlier turns becomes user text
        for _, parts in groupby(sendable, key=lambda part: isinstance(part, pai.ToolReturnPart)):
            yield from self._asked(list(parts))

    def _asked(self, parts: list[pai.ModelRequestPart]) -> Iterator[Message]:
        """Yield the turns of parts that are all tool results, or none of them."""
        if returned := [part for part in parts if isinstance(part, pai.ToolReturnPart)]:
            yield from self._returned(returned)
            return
        for part in parts:
            if isinstance(part, pai.SystemPromptPart):
                yield Message.system(part.content)
            elif isinstance(part, pai.UserPromptPart):
                yield Message.user(*shown_parts(part.content, self.inline))
            else:
                raise refused(part)

    def _returned(self, parts: list[pai.ToolReturnPart[Any]]) -> Iterator[Message]:
        """Yield the results, which are texts, then a turn of the files in them, each framed with its call."""
        results, files = [], list[pai.UserContent]()
        for part in parts:
            text, shown = part.model_response_str_and_user_content()
            results.append(ToolResultPart(id=part.tool_call_id, name=part.tool_name, content=text))
            if shown:
                known = replace(part, tool_call_id=self.ids.get(part.tool_call_id, part.tool_call_id))
                files += known.model_response_str_and_user_content()[1]
        yield Message.tool(*results)
        if files:
            yield Message.user(*shown_parts(files, self.inline))

    def _answered(self, response: pai.ModelResponse) -> Iterator[Message]:
        for part in response.parts:
            if isinstance(part, pai.ToolCallPart):
                self.ids[part.tool_call_id] = f"call_{self.calls}"
                self.calls += 1
        for compacted, parts in groupby(
            response.parts, key=lambda part: isinstance(part, pai.CompactionPart)
        ):
            if compacted:
                yield from self._asked([_summary(part) for part in parts])
            elif said := [neutral for part in parts if (neutral := _said(part, self.provider))]:
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
