"""What a request demands of a candidate: skills, and room in its window, estimated high rather than low. Pure."""

from collections.abc import Mapping

from app.llm.candidates import Needs
from app.llm.fingerprint import json_bytes
from app.llm.messages import FilePart, Part, ToolChoiceTool
from app.llm.schemas import losses, most_bytes
from app.llm.types import LLMProvider, LLMRequest

BYTES_PER_TOKEN = 3
"""Of UTF-8. Low on purpose: English has about four, and one CJK character (three bytes) is about one token."""

TOKENS_PER_MESSAGE = 4
"""For the marks around a message.

Source: OpenAI cookbook, "How to count tokens with tiktoken": three for a message, one more for a name."""

TOKENS_PER_IMAGE = 1_548
"""Six tiles of 768 x 768 pixels and 258 tokens, what Gemini makes of 2,304 x 1,536 pixels.

Source: https://ai.google.dev/gemini-api/docs/tokens."""

BYTES_PER_TOKEN_OF: Mapping[str, int] = {"audio": 30, "video": 40, "documents": 8}
"""Of a file, at the lowest usual bit rates: 32 tokens a second of sound, 300 of film, 258 a page of text as PDF.

Source: as above."""

MAX_DOCUMENT_TOKENS = 258_000
"""A thousand pages, more than which Gemini takes of no document.

Source: https://ai.google.dev/gemini-api/docs/document-processing."""

DEFAULT_OUTPUT_TOKENS = 1_024
"""Room that is kept for an answer whose request names no `max_output_tokens`."""

_COPIED = b'"$ref"'
"""What is written out where it is referred to, in the parameters of tools."""


class NeedsByProvider(dict[LLMProvider | None, Needs]):
    """What each provider's candidates must do: by name where a request has a variant, under None for all others."""

    def __missing__(self, provider: LLMProvider | None) -> Needs:
        """Return what is needed of everybody without a variant."""
        return self[None]


def needs_by_provider(request: LLMRequest, *, whole_schemas: bool = False) -> NeedsByProvider:
    """Return what the request demands of the candidates of each provider, by its variants."""
    needs = NeedsByProvider({None: needs_of(request, whole_schemas=whole_schemas)})
    for provider in request.variants:
        needs[provider] = needs_of(request.as_sent_to(provider), whole_schemas=whole_schemas)
    return needs


def needs_of(request: LLMRequest, *, whole_schemas: bool = False) -> Needs:
    """Return what a request, as sent to one provider, demands; tokens are estimated high rather than low.

    Args:
        request: As sent to one provider.
        whole_schemas: Whether it matters what its schemas lose on their way.
    """
    form, choice = request.response_format, request.tool_choice
    schema = form.json_schema if form else None
    parts = [part for message in request.messages for part in message.content]
    tokens = TOKENS_PER_MESSAGE * len(request.messages) + sum([_tokens_of_part(part) for part in parts])
    held = {part.type if part.type != "file" else part.kind for part in parts}
    for tool in request.tools:
        said = json_bytes([tool.name, tool.description, tool.parameters])
        tokens += _tokens(said)
        if _COPIED in said:
            tokens += -(-most_bytes(tool.parameters) // BYTES_PER_TOKEN)
    return Needs(
        tools=bool(request.tools),
        forced_tool_choice=choice == "required" or isinstance(choice, ToolChoiceTool),
        json_object=form is not None and form.type == "json_object",
        json_schema=form is not None and form.type == "json_schema",
        vision="image" in held,
        documents="documents" in held,
        audio="audio" in held,
        video="video" in held,
        losses=losses(request) if whole_schemas else (),
        input_tokens_estimate=tokens if schema is None else tokens + _tokens(json_bytes(schema)),
        output_tokens_reserved=request.max_output_tokens or DEFAULT_OUTPUT_TOKENS,
    )


def _tokens_of_part(part: Part) -> int:
    if part.type == "image":
        return TOKENS_PER_IMAGE
    if part.type == "file":
        return _tokens_of_file(part)
    if part.type == "tool_call":
        return _tokens(part.name.encode()) + _tokens(json_bytes(part.arguments))
    text = part.content if part.type == "tool_result" else part.text
    return _tokens(text.encode("utf-8", "surrogatepass"))


def _tokens_of_file(file: FilePart) -> int:
    tokens = -(-len(file.data) // BYTES_PER_TOKEN_OF[file.kind])
    return min(tokens, MAX_DOCUMENT_TOKENS) if file.kind == "documents" else tokens


def _tokens(text: bytes) -> int:
    return -(-len(text) // BYTES_PER_TOKEN)  # rounded up
