"""Messages, tools and answer formats as typed parts, so that no room ever guesses what a dict holds."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

NO_PARAMETERS: Mapping[str, JsonValue] = {"type": "object", "properties": {}}


class Frozen(BaseModel):
    """The base of all shapes: immutable, unknown fields refused, bytes as base64 in JSON."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        ser_json_bytes="base64",
        val_json_bytes="base64",
    )


class TextPart(Frozen):
    """Text of any role."""

    type: Literal["text"] = "text"
    text: str


class ImagePart(Frozen):
    """An image as bytes; the bytes are what is fingerprinted. Remote URLs are refused: fetch them yourself."""

    type: Literal["image"] = "image"
    data: bytes = Field(min_length=1)
    media_type: Literal["image/png", "image/jpeg", "image/webp", "image/gif"]

    @classmethod
    def from_data_url(cls, url: str) -> Self:
        """Return the image of a `data:image/...;base64,...` URL.

        Raises:
            ValueError: The URL is remote, not base64, or not a PNG, JPEG, WebP or GIF.
        """
        head, comma, body = url.partition(",")
        media_type = head.removeprefix("data:").removesuffix(";base64")
        if not head.startswith("data:") or not head.endswith(";base64") or not comma:
            raise ValueError(
                "an image is given as bytes or as a data:image/...;base64,... URL; remote URLs are refused"
            )
        try:
            return cls.model_validate(
                {"data": base64.b64decode(body, validate=True), "media_type": media_type}
            )
        except binascii.Error as error:
            raise ValueError(f"the data URL is not valid base64: {error}") from None


class FilePart(Frozen):
    """A PDF, a recording or a film as bytes, otherwise as `ImagePart`. A document in plain text is a `TextPart`.

    The media types are those that Gemini takes.
    Source: https://ai.google.dev/gemini-api/docs, the pages on documents, audio and video.
    """

    type: Literal["file"] = "file"
    data: bytes = Field(min_length=1)
    media_type: Literal[
        "application/pdf",
        "audio/aac",
        "audio/aiff",
        "audio/flac",
        "audio/mp3",
        "audio/mpeg",
        "audio/ogg",
        "audio/wav",
        "video/3gpp",
        "video/avi",
        "video/mov",
        "video/mp4",
        "video/mpeg",
        "video/mpg",
        "video/quicktime",
        "video/webm",
        "video/wmv",
        "video/x-flv",
        "video/x-ms-wmv",
    ]

    @property
    def kind(self) -> Literal["documents", "audio", "video"]:
        """What a candidate must be able to read."""
        if self.media_type.startswith("audio/"):
            return "audio"
        return "video" if self.media_type.startswith("video/") else "documents"


class ToolCallPart(Frozen):
    """A call that the model asks for. `signature` is opaque provider state, sent back to that provider only."""

    type: Literal["tool_call"] = "tool_call"
    id: str
    name: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    signature: str | None = None


class ToolResultPart(Frozen):
    """What a tool returned, for the call with the same id."""

    type: Literal["tool_result"] = "tool_result"
    id: str
    name: str
    content: str


class ThinkingPart(Frozen):
    """Reasoning text that the model showed. `signature` as in `ToolCallPart`."""

    type: Literal["thinking"] = "thinking"
    text: str
    signature: str | None = None


Part = Annotated[
    TextPart | ImagePart | FilePart | ToolCallPart | ToolResultPart | ThinkingPart,
    Field(discriminator="type"),
]
Role = Literal["system", "user", "assistant", "tool"]

_ALLOWED: Mapping[str, tuple[type[BaseModel], ...]] = {
    "system": (TextPart,),
    "user": (TextPart, ImagePart, FilePart),
    "assistant": (TextPart, ToolCallPart, ThinkingPart),
    "tool": (ToolResultPart,),
}


class Message(Frozen):
    """One turn: a role and its typed parts, in order."""

    role: Role
    content: tuple[Part, ...] = Field(min_length=1)

    @field_validator("content", mode="before")
    @classmethod
    def _text_is_a_part(cls, value: object) -> object:
        return (TextPart(text=value),) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _parts_fit_the_role(self) -> Self:
        for part in self.content:
            if not isinstance(part, _ALLOWED[self.role]):
                raise ValueError(f"a {self.role} message cannot hold a {part.type} part")  # noqa: TRY004
        return self

    @classmethod
    def system(cls, text: str) -> Self:
        """Return a system message."""
        return cls(role="system", content=(TextPart(text=text),))

    @classmethod
    def user(cls, *parts: str | TextPart | ImagePart | FilePart) -> Self:
        """Return a user message of texts, images and files."""
        return cls(role="user", content=_as_parts(parts))

    @classmethod
    def assistant(cls, *parts: str | TextPart | ToolCallPart | ThinkingPart) -> Self:
        """Return an earlier answer of the model."""
        return cls(role="assistant", content=_as_parts(parts))

    @classmethod
    def tool(cls, *results: ToolResultPart) -> Self:
        """Return what the tools gave back."""
        return cls(role="tool", content=results)

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


def _as_parts(parts: Iterable[str | Part]) -> tuple[Part, ...]:
    return tuple([TextPart(text=part) if isinstance(part, str) else part for part in parts])


class ToolSpec(Frozen):
    """A tool that the model may call; `parameters` is a JSON Schema of an object."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")
    description: str = ""
    parameters: dict[str, JsonValue] = Field(default_factory=lambda: dict(NO_PARAMETERS))
    strict: bool | None = None


class ToolChoiceTool(Frozen):
    """Forces one tool by name."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | ToolChoiceTool


class ResponseFormat(Frozen):
    """What the text of an answer must be: free text, any JSON object, or JSON of a schema.

    `adaptive` is JSON of a schema too, asked for as each candidate is able to: its own JSON schema, else its JSON mode
    or none, with the schema in the system message. So it excludes nobody, and promises less.
    """

    type: Literal["text", "json_object", "json_schema", "adaptive"] = "text"
    name: str = Field(default="answer", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    json_schema: dict[str, JsonValue] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_where_needed(self) -> Self:
        if (self.type in {"json_schema", "adaptive"}) != (self.json_schema is not None):
            raise ValueError("json_schema is given exactly when type is 'json_schema' or 'adaptive'")
        return self

    @classmethod
    def of_schema(cls, schema: dict[str, Any], *, name: str = "answer", strict: bool | None = None) -> Self:
        """Return the format for JSON that fits `schema`."""
        return cls(type="json_schema", json_schema=schema, name=name, strict=strict)
