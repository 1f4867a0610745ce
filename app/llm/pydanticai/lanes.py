"""Lanes: PydanticAI's own preparation of a request, once per provider, because the provider is chosen later.

A lane is a PydanticAI model that never sends. It settles output mode, schemas, tools and messages under the
profile of one provider and hands them over in our terms; the router then picks the candidate, and with it the lane.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Never

import orjson
from pydantic_ai.messages import DocumentMediaType, ModelMessage
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.profiles import (
    DEFAULT_PROFILE,
    DEFAULT_PROMPTED_OUTPUT_TEMPLATE,
    ModelProfile,
    merge_profile,
)
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from app.llm.candidates import Candidate, ProviderCaps
from app.llm.messages import ResponseFormat, ToolChoice, ToolChoiceTool, ToolSpec
from app.llm.pydanticai.internals import resolve_tool_choice
from app.llm.pydanticai.messages import neutral_messages, refuse_speech_without_words
from app.llm.types import LLMProvider, RequestVariant

_EVERY_LANE = ModelProfile(
    supports_tools=True,
    json_schema_transformer=None,  # what a provider can be told of a schema is settled for every caller: `schemas/`
    supports_json_schema_output=True,  # the router excludes a candidate that cannot, and says so
    supports_thinking=True,
    supports_document_input=True,  # those that are texts
)
_TEXT_DOCUMENTS: frozenset[DocumentMediaType] = frozenset(
    ("text/plain", "text/csv", "text/html", "text/markdown")
)

_PROFILES: Mapping[LLMProvider, ModelProfile] = {
    LLMProvider.OLLAMA: ModelProfile(
        default_structured_output_mode="native",
        native_output_requires_schema_in_instructions=True,  # small models follow the grammar better if they know it
        may_tokenize_special_tokens_in_content=True,  # its server tokenizes `<|im_start|>` in a text as a real turn
    ),
}
_OTHERS = ModelProfile(default_structured_output_mode="tool")

_PDF: frozenset[DocumentMediaType] = frozenset(("application/pdf",))

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")
_NAME_CHARS = 64

_MAX_PREPARED = 128
_MAX_PREPARED_BYTES = 65_536  # of one agent's parameters; longer ones are prepared anew each time

_HOLDS_IF_ANY = frozenset(
    {"native_output_requires_schema_in_instructions", "may_tokenize_special_tokens_in_content"}
)
"""Precautions: taken as soon as one lane needs them. The second makes PydanticAI mend the answer, too."""


class Lane(Model[Any]):
    """One provider's way to put a request: its candidates decide what it can do, its profile what it prefers."""

    def __init__(self, provider: LLMProvider, candidates: Sequence[Candidate]) -> None:
        caps = [candidate.caps for candidate in candidates]
        self.provider_id = provider
        self._prefers_native = _PROFILES.get(provider, _OTHERS).get(
            "default_structured_output_mode"
        ) == "native" and all(can.supports_json_schema for can in caps)
        self._can_force = all(can.supports_forced_tool_choice for can in caps)
        window = min(can.max_context_tokens for can in caps)
        self._can_json = all(can.supports_json for can in caps)
        own = ModelProfile(
            supports_forced_tool_choice=self._can_force,
            context_window=window,
            # If only one can, it gets the files: the router excludes the others, and says so.
            supports_image_input=any(can.supports_vision for can in caps),
            supports_audio_file_input=any(can.supports_audio for can in caps),
            supports_video_input=any(can.supports_video for can in caps),
            supported_document_media_types=_TEXT_DOCUMENTS | _PDF
            if any(can.supports_documents for can in caps)
            else _TEXT_DOCUMENTS,
        )
        self._prepared: dict[bytes, ModelRequestParameters] = {}
        super().__init__(profile=merge_profile(_EVERY_LANE, _PROFILES.get(provider, _OTHERS), own))

    @property
    def model_name(self) -> str:
        """The provider's name: a lane stands for all its candidates."""
        return self.provider_id.value

    @property
    def system(self) -> str:
        """The provider's name."""
        return self.provider_id.value

    async def request(self, *_: Any) -> Never:
        """Refuse: the service sends."""
        raise NotImplementedError("a lane prepares requests, it does not send them")

    def prepare_request(
        self, model_settings: ModelSettings | None, model_request_parameters: ModelRequestParameters
    ) -> tuple[ModelSettings | None, ModelRequestParameters]:
        """Settle the output mode: a schema for the whole answer and function tools exclude each other.

        Ollama's grammar for the answer would leave no way to call a tool, and Gemini refuses the two together. So
        with function tools an open mode becomes tool output, and a native one that the agent insists on is put into
        the instructions, as a prompted one is in any case.
        """
        params = model_request_parameters
        has_tools = bool(params.function_tools)
        params = params.with_default_output_mode(
            "native" if self._prefers_native and not has_tools else "tool"
        )
        if params.output_mode == "native" and has_tools and params.prompted_output_template is None:
            params = replace(params, prompted_output_template=DEFAULT_PROMPTED_OUTPUT_TEMPLATE)
        return super().prepare_request(model_settings, params)

    def render(
        self, messages: list[ModelMessage], settings: ModelSettings, params: ModelRequestParameters
    ) -> RequestVariant:
        """Return the request as candidates of this provider get it.

        Raises:
            UserError: The agent asks for something that no lane can put (a part, an output mode, a native tool).
        """
        refuse_speech_without_words(messages)
        history = self.prepare_messages(messages, params)
        prepared = self._prepared_once(settings, params)
        instructions = self._get_instruction_parts(history, prepared) or []
        tools, choice = self._tools(settings, prepared)
        strict = {tool.name: tool.strict for tool in params.tool_defs.values()}
        return RequestVariant(
            messages=neutral_messages(
                history,
                instructions=(part.content for part in instructions),
                provider=self.provider_id,
                inline=self._format_inlined_text_file,
            ),
            tools=tuple(_spec(tool, strict.get(tool.name)) for tool in tools),
            tool_choice=choice,
            response_format=None if tools else self._format(prepared, params),
        )

    def _prepared_once(
        self, settings: ModelSettings, params: ModelRequestParameters
    ) -> ModelRequestParameters:
        """Return the prepared parameters, which nobody may change; an agent asks with equal ones again and again."""
        key = _key(settings, params)
        found = self._prepared.get(key)
        if found is None:
            # Of a copy where it is kept: what is kept shares nothing with the agent.
            _, found = self.prepare_request(settings, deepcopy(params) if key else params)
            if len(self._prepared) >= _MAX_PREPARED:
                self._prepared.clear()
            if key:
                self._prepared[key] = found
        return found

    def _tools(
        self, settings: ModelSettings, prepared: ModelRequestParameters
    ) -> tuple[list[ToolDefinition], ToolChoice | None]:
        """Return the tools to declare and the choice between them; "none" declares none, which needs no support.

        A force that PydanticAI derived (from an output type) becomes "auto" where it cannot be had. One that was
        asked for stays: the router excludes the candidates that cannot be forced.
        """
        resolved = resolve_tool_choice(settings, prepared)
        mode, names = resolved if isinstance(resolved, tuple) else (resolved, None)
        declared = prepared.declared_tool_defs.values()
        tools = [tool for tool in declared if names is None or tool.name in names]
        if mode == "none" or not tools:
            return [], None
        said = settings.get("tool_choice")
        asked_for = said == "required" or (
            isinstance(said, list) and bool(said)
        )  # [] only switches tools off
        if mode == "auto" or not (self._can_force or asked_for):
            return tools, "auto"
        return tools, ToolChoiceTool(name=tools[0].name) if names and len(tools) == 1 else "required"

    def _format(
        self, prepared: ModelRequestParameters, asked: ModelRequestParameters
    ) -> ResponseFormat | None:
        if prepared.output_mode == "native" and prepared.output_object is not None:
            return _format_of(prepared.output_object, asked.output_object)
        if prepared.output_mode == "prompted" and self._can_json:
            return ResponseFormat(type="json_object")
        return None


def ablest() -> Lane:
    """Return a lane that leaves nothing of a request out, whichever candidates there are."""
    can_all = ProviderCaps(
        **dict.fromkeys((name for name in ProviderCaps.model_fields if name.startswith("supports_")), True),
        max_context_tokens=sys.maxsize,
    )
    return Lane(
        LLMProvider.GEMINI,
        [Candidate(provider=LLMProvider.GEMINI, model="any", caps=can_all, local=True, identity="")],
    )


def meet(lanes: Iterable[Lane]) -> ModelProfile:
    """Return what holds whichever lane is taken: booleans of all, the smallest window, sets cut, else what is equal."""
    profiles: list[Mapping[str, Any]] = [lane.profile for lane in lanes]
    met = {name: _met(name, [profile.get(name) for profile in profiles]) for name in set().union(*profiles)}
    shared = {name: value for name, value in met.items() if value is not None}
    return merge_profile(DEFAULT_PROFILE, ModelProfile(**shared))  # type: ignore[typeddict-item]  # names of profiles


def _met(name: str, values: list[Any]) -> Any:
    if name in _HOLDS_IF_ANY:
        return any(values)
    if name == "context_window":
        return min(values)
    if all(isinstance(value, bool) for value in values):
        return all(values)
    if all(isinstance(value, frozenset) for value in values):
        return frozenset.intersection(*values)
    return values[0] if all(value == values[0] for value in values) else None


def _key(settings: ModelSettings, params: ModelRequestParameters) -> bytes:
    """Return what equal parameters share; empty if they are not to be remembered."""
    try:
        key = orjson.dumps([settings, params], default=_listed)
    except TypeError:  # something in them is no plain data
        return b""
    return key if len(key) <= _MAX_PREPARED_BYTES else b""


def _listed(value: object) -> list[Any]:
    if not isinstance(value, set | frozenset):
        raise TypeError(f"{type(value).__name__} is no plain data")
    return sorted(value)


def _spec(tool: ToolDefinition, strict: bool | None) -> ToolSpec:  # noqa: FBT001  # as it is written
    return ToolSpec(
        name=tool.name,
        description=tool.description or "",
        parameters=tool.parameters_json_schema,
        strict=strict,
    )


def _format_of(wanted: OutputObjectDefinition, asked: OutputObjectDefinition | None) -> ResponseFormat:
    described = {"description": wanted.description} if wanted.description else {}
    name = _NOT_IN_A_NAME.sub("_", wanted.name or "answer")[:_NAME_CHARS]
    strict = asked.strict if asked else None
    return ResponseFormat.of_schema({**described, **wanted.json_schema}, name=name, strict=strict)
