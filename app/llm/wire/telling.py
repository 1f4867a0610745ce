"""Decides what of an unfinished answer can be told already, so that joined deltas are the parts of the answer."""

import json

from app.llm.deltas import Delta, TextDelta, ThinkingDelta, ToolCallDelta
from app.llm.wire.answers import Call, arguments_of

_TAGS = ("think", "thinking", "budget:thinking")
OPENING = tuple(f"<{tag}>" for tag in _TAGS)
CLOSING = tuple(f"</{tag}>" for tag in _TAGS)


class Telling:
    """The deltas of one answer. Kept back: white space before the text, and what may become a tag of thoughts."""

    def __init__(self) -> None:
        self._blank = ""
        self._spoken = False
        self._tagged: _Tagged | None = None
        self._calls = 0

    def text(self, text: str, *, tagged: bool) -> list[Delta]:
        """Return what `text` adds; `tagged`: the text may begin with thoughts between tags."""
        if self._tagged is None and tagged and not self._spoken:
            self._tagged = _Tagged()
        if self._tagged is None:
            return self._told(text)
        thought, said = self._tagged.take(text)
        return [*_thought(thought), *self._told(said)]

    def call(self, call: Call) -> list[Delta]:
        """Return a tool call, unless it is one that makes the answer unusable."""
        place, arguments = self._calls, arguments_of(call.arguments)
        self._calls += 1
        if arguments is None or not call.whole or not isinstance(call.name, str) or not call.name:
            return []
        text = json.dumps(arguments, ensure_ascii=False)
        return [ToolCallDelta(place, f"call_{place}", call.name, text, call.signature or None)]

    def end(self) -> list[Delta]:
        """Return what was kept back and has turned out to be said."""
        if self._tagged is None:
            return []
        thought, said = self._tagged.end()
        return [*_thought(thought), *self._told(said)]

    def _told(self, text: str) -> list[Delta]:
        if not text:
            return []
        if not self._spoken:
            self._blank += text
            if not self._blank.strip():
                return []  # an answer of white space has no text
            self._spoken, text = True, self._blank
        return [TextDelta(text)]


class _Tagged:
    """Splits a text into the thoughts that it begins with, between tags, and the rest."""

    def __init__(self) -> None:
        self._kept = ""
        self._within: bool | None = None  # None: nobody knows yet

    def take(self, text: str) -> tuple[str, str]:
        """Return what is certain by now: thoughts and text."""
        if self._within is False:
            return "", text
        kept = self._kept + text
        if self._within is None:
            if any(tag.startswith(kept) and tag != kept for tag in OPENING):
                self._kept = kept
                return "", ""
            opening = next((tag for tag in OPENING if kept.startswith(tag)), None)
            if opening is None:
                self._kept, self._within = "", False
                return "", kept
            kept, self._within = kept[len(opening) :], True
        return self._thoughts(kept)

    def end(self) -> tuple[str, str]:
        """Return what was kept back."""
        kept, self._kept = self._kept, ""
        return (kept, "") if self._within else ("", kept)

    def _thoughts(self, kept: str) -> tuple[str, str]:
        found = [(place, tag) for tag in CLOSING if (place := kept.find(tag)) >= 0]
        if found:
            place, tag = min(found)
            self._kept, self._within = "", False
            return kept[:place], kept[place + len(tag) :]
        open_at = kept.rfind("<", -max(map(len, CLOSING)))
        certain = (
            open_at if open_at >= 0 and any(tag.startswith(kept[open_at:]) for tag in CLOSING) else len(kept)
        )
        self._kept = kept[certain:]
        return kept[:certain], ""


def _thought(text: str) -> list[Delta]:
    return [ThinkingDelta(text)] if text else []
