"""What each provider can be told of a JSON schema, keyword by keyword, with the source of each fact.

Ollama hands `format` to llama.cpp, which makes a grammar of it: of the keywords it knows it reads the first of a
fixed order (`$ref`, unions, `enum`, structure, `pattern`, `format`, lengths, bounds of integers) and drops the rest
in silence, or refuses the whole call (another pattern, too many repetitions). Read in
https://github.com/ggml-org/llama.cpp/blob/master/common/json-schema-to-grammar.cpp and, for how Ollama calls it,
https://github.com/ollama/ollama/blob/main/llm/llama_server.go. Tool parameters become a Go struct that keeps seven
keywords: https://github.com/ollama/ollama/blob/main/api/types.go, `ToolProperty`.

Gemini reads `responseJsonSchema`, whose keywords, cycles and lone `$ref` are documented at
https://ai.google.dev/api/generate-content#GenerationConfig, or, for tool parameters and for models of which LiteLLM
does not know that they are newer than 1.5, `Schema`: https://ai.google.dev/api/caching#Schema. LiteLLM 1.105.3 sends
the former as it is and writes the latter itself (`_build_vertex_schema`): it drops formats but `date-time` and enums
that are no strings, takes null for an empty string in an enum, gives a schema without a type the type object, and
leaves nothing beside `anyOf`; in both it takes a property named `strict` for a keyword of OpenAI's. What leaves us gives it no occasion for any of these.

Anthropic holds an answer to types, properties, enums and some formats, and refuses bounds, lengths, counts and cycles:
https://platform.claude.com/docs/en/build-with-claude/structured-outputs. The parameters of its tools, and all schemas
for OpenAI and Groq, are sent as they are: there they are told, and held to where `strict` asks for it.

Nobody documents how large or deep a schema may be; Gemini says that it may refuse one that is too complex
(https://ai.google.dev/gemini-api/docs/structured-output), and LiteLLM stops at 100 levels of JSON.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

Json = dict[str, Any]

TYPES = ("string", "number", "boolean", "null", "object", "array")
"""Every type but integer, which is a number."""


class SchemaDialect(StrEnum):
    """A way to write a schema."""

    OLLAMA_FORMAT = "ollama_format"
    OLLAMA_TOOLS = "ollama_tools"
    GEMINI_JSON_SCHEMA = "gemini_json_schema"
    GEMINI_OPENAPI = "gemini_openapi"
    GEMINI_TOOLS = "gemini_tools"
    ANTHROPIC_FORMAT = "anthropic_format"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What one dialect can say. `type`, `properties`, `required`, `items`, `anyOf` and `enum` all of them can."""

    keywords: frozenset[str] = frozenset()
    """The other constraints that it can say."""
    formats: frozenset[str] = frozenset()
    enums: frozenset[str] = frozenset(TYPES) | {"integer"}
    """Types whose values an enum may list."""
    bounded: frozenset[str] = frozenset({"integer", "number"})
    """Types whose `minimum` and `maximum` count, if these are keywords."""
    references: bool = False
    """Whether `$defs` stay, cycles included; else each reference becomes a copy."""
    cycles_need_an_option: bool = False
    """Whether a cycle of references must pass through a property that may be left out."""
    grammar: bool = False
    """Whether llama.cpp reads it: one kind of constraint on a text, plain patterns, few repetitions."""
    told: bool = False
    """Whether the model sees the schema: what cannot be said as a constraint is said in the description."""
    parameters: bool = False
    """Whether it is always an object."""
    anything: Any = None
    """The schema of any value."""
    narrows: bool = False
    """Whether `anything` leaves something out."""
    lost_names: frozenset[str] = frozenset({"strict"})
    """Properties that LiteLLM takes for something else, on their way to Gemini, and drops or stumbles over."""
    annotations: tuple[str, ...] = ("description",)
    max_depth: int = 60
    """Levels of schemas; a deeper one keeps its type only."""


_COUNTS = frozenset({"minItems", "maxItems"})
_BOUNDS = frozenset({"minimum", "maximum"})
_LENGTHS = frozenset({"minLength", "maxLength"})

_SIMPLE: tuple[Json, ...] = tuple({"type": name} for name in TYPES if name != "array")
_OPENAPI = Facts(
    keywords=_COUNTS | _BOUNDS | _LENGTHS | {"pattern", "minProperties", "maxProperties"},
    formats=frozenset({"date-time"}),
    enums=frozenset({"string"}),
    told=True,
    anything={"anyOf": [*_SIMPLE, {"type": "array", "items": {"anyOf": [*_SIMPLE]}}]},
    narrows=True,
    lost_names=frozenset({"strict", "$ref"}),
    max_depth=30,
)

FACTS: Mapping[SchemaDialect, Facts] = {
    SchemaDialect.OLLAMA_FORMAT: Facts(
        keywords=_COUNTS | _BOUNDS | _LENGTHS | {"pattern", "prefixItems", "additionalProperties"},
        formats=frozenset({"date", "time", "date-time", "uuid", "uuid1", "uuid2", "uuid3", "uuid4", "uuid5"}),
        bounded=frozenset({"integer"}),
        references=True,
        grammar=True,
        lost_names=frozenset(),
        anything={"anyOf": [{"type": name} for name in TYPES]},  # an empty schema is read as any object
        annotations=("title", "description"),
    ),
    SchemaDialect.OLLAMA_TOOLS: Facts(told=True, parameters=True, anything={}, lost_names=frozenset()),
    SchemaDialect.GEMINI_JSON_SCHEMA: Facts(
        keywords=_COUNTS | _BOUNDS | {"prefixItems", "additionalProperties"},
        formats=frozenset({"date", "time", "date-time"}),
        enums=frozenset({"string", "integer", "number"}),
        references=True,
        cycles_need_an_option=True,
        told=True,
        anything={},
    ),
    SchemaDialect.GEMINI_OPENAPI: _OPENAPI,
    SchemaDialect.GEMINI_TOOLS: replace(_OPENAPI, parameters=True),
    SchemaDialect.ANTHROPIC_FORMAT: Facts(
        formats=frozenset({"date", "time", "date-time", "uuid"}),
        told=True,
        anything={},
        lost_names=frozenset(),
    ),
}
