"""What a user or a tool shows, as parts of our messages, because each kind needs a candidate that can read it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, get_args

from pydantic_ai import messages as pai
from pydantic_ai.exceptions import UserError

from app.llm.messages import FilePart, ImagePart

Inline = Callable[..., str]
"""Frames the text of a file: `Model._format_inlined_text_file`, which knows what its model makes of control tokens."""
Shown = str | ImagePart | FilePart

BETWEEN_TEXTS = "\n\n"

_TEXT_TYPES = frozenset(
    f"application/{name}" for name in ("json", "xml", "yaml", "x-yaml", "toml", "x-ndjson", "jsonl")
)
_PART_OF: Mapping[str, type[ImagePart | FilePart]] = {
    media_type: part
    for part in (ImagePart, FilePart)
    for media_type in get_args(part.model_fields["media_type"].annotation)
}


def shown_parts(content: str | Sequence[pai.UserContent], inline: Inline) -> list[Shown]:
    """Return what a prompt shows, in order: neighbouring texts as one, never nothing.

    A text that another one follows, behind a file, ends in a gap: some providers put all texts of a turn together.

    Args:
        content: Of a user prompt.
        inline: Frames the text of a file.

    Raises:
        UserError: An item is neither text nor a file whose bytes are at hand and of a known media type; it is named.
    """
    items = [content] if isinstance(content, str) else content
    parts: list[Shown] = []
    found = [part for item in items for part in _shown(item, inline)]
    for are_texts, group in groupby(found, key=lambda part: isinstance(part, str)):
        if are_texts:
            parts.append(BETWEEN_TEXTS.join(map(str, group)))
        else:
            parts.extend(group)
    *earlier, _ = [index for index, part in enumerate(parts) if isinstance(part, str)] or [0]
    for index in earlier:
        parts[index] = f"{parts[index]}{BETWEEN_TEXTS}"
    return parts or [""]


def refused(part: object, why: str = "") -> UserError:
    """Return the error for what cannot be sent, with the name of its class."""
    said = why or (
        "it carries texts, images, PDF files, audio, video, thinking, tool calls and tool results. Convert it, or "
        "give the agent another model"
    )
    return UserError(f"{type(part).__name__} cannot be sent through this model: {said}")


def _shown(item: Any, inline: Inline) -> Iterator[Shown]:
    if isinstance(item, str):
        yield item
    elif isinstance(item, pai.TextContent):
        yield item.content
    elif isinstance(item, pai.BinaryContent):
        yield _file(item, inline)
    elif isinstance(item, pai.ImageUrl | pai.AudioUrl | pai.VideoUrl | pai.DocumentUrl):
        yield _file(_at_hand(item), inline)
    elif isinstance(item, pai.UploadedFile):
        raise refused(item, f"only {item.provider_name} can read it; give its bytes as BinaryContent")
    elif not isinstance(item, pai.CachePoint):  # a price mark, no content
        raise refused(item)


def _at_hand(item: pai.FileUrl) -> pai.BinaryContent:
    """Return the content of a `data:` URL.

    Raises:
        UserError: It is another one, or broken.
    """
    if not item.url.startswith("data:"):
        raise refused(item, "remote URLs are refused; fetch it yourself and give its bytes as BinaryContent")
    try:
        return pai.BinaryContent.from_data_uri(item.url)
    except ValueError as error:
        raise refused(item, f"its data: URL is broken ({error})") from None


def _file(item: pai.BinaryContent, inline: Inline) -> Shown:
    media_type = item.media_type.partition(";")[0].strip().lower()
    if part := _PART_OF.get(media_type):
        return part(data=item.data, media_type=media_type)
    if not _is_text(media_type):
        raise refused(item, f"nothing here reads {item.media_type!r}; known are texts, {', '.join(_PART_OF)}")
    try:
        return inline(item.data.decode(), media_type=item.media_type, identifier=item.identifier)
    except UnicodeDecodeError:
        raise refused(item, f"it is said to be {item.media_type!r} and is not UTF-8") from None


def _is_text(media_type: str) -> bool:
    return (
        media_type.startswith("text/") or media_type in _TEXT_TYPES or media_type.endswith(("+json", "+xml"))
    )
