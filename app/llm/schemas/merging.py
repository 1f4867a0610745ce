"""Brings a schema into the one shape that the fitting reads: no `allOf`, no `oneOf`, no `const`, no list of one type.

Whatever satisfies the schema satisfies what comes out.
"""

from collections.abc import Callable, Mapping
from typing import Any

from app.llm.schemas.dialects import Json

Note = Callable[[str], None]
"""Takes a keyword that could not be kept."""

MAX_LEVELS = 20
"""Of `allOf` within `allOf`; a definition may hold itself that way."""

ANYWHERE = frozenset(("enum", "const", "not", "if", "anyOf", "oneOf", "allOf", "$ref", "$dynamicRef"))
OF_TYPE: Mapping[str, frozenset[str]] = {
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    **dict.fromkeys(
        ("integer", "number"),
        frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    ),
    "array": frozenset(
        ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains", "unevaluatedItems")
    ),
    "object": frozenset(
        (
            *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
            *("minProperties", "maxProperties", "dependentRequired", "dependentSchemas"),
            "unevaluatedProperties",
        )
    ),
}
"""Which constraints count for values of which type; what is in no set here says nothing about a value."""

CONSTRAINTS = ANYWHERE.union(*OF_TYPE.values()) | {"type"}

_TIGHTER: Mapping[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
    "required": lambda one, other: list(dict.fromkeys([*one, *other])),
    "enum": lambda one, other: [value for value in one if value in other],
}


def constrains(schema: Mapping[str, Any]) -> bool:
    """Return whether the schema refuses any value at all."""
    return any(key in CONSTRAINTS and schema[key] is not True for key in schema)


def gathered(
    schema: Mapping[str, Any], resolved: Callable[[Any], Any], note: Note, levels: int = MAX_LEVELS
) -> Json:
    """Return one schema for all that holds at once; `resolved` follows the references of `allOf`."""
    rules = {key: value for key, value in schema.items() if key != "allOf"}
    _spell(rules, note)
    for part in schema.get("allOf", ()):
        whole = resolved(part)
        if whole is False or not levels:
            note("allOf")
        elif whole is not True:
            rules = both(rules, gathered(whole, resolved, note, levels - 1), note)
    return rules


def both(one: Json, other: Json, note: Note) -> Json:
    """Return what holds if both hold; what cannot be joined is the first one's."""
    joined = {**one}
    for key, value in other.items():
        if key not in one:
            joined[key] = value
        elif key in _TIGHTER:
            joined[key] = _TIGHTER[key](one[key], value)
        elif key == "properties":
            joined[key] = _properties(one[key], value)
        elif key in CONSTRAINTS and value != one[key]:
            note("allOf")
    return joined


def _properties(one: Json, other: Json) -> Json:
    shared = {
        name: one[name] if one[name] == other[name] else {"allOf": [one[name], other[name]]}
        for name in one.keys() & other.keys()
    }
    return {**one, **other, **shared}


def _spell(rules: Json, note: Note) -> None:
    """Put the usual word for each constraint that has two."""
    if "const" in rules:
        value = rules.pop("const")
        rules["enum"] = [value] if value in rules.get("enum", [value]) else []
    if "oneOf" in rules:
        members = rules.pop("oneOf")
        if "discriminator" not in rules:  # with one, each value fits one member only
            note("oneOf")
        if "anyOf" in rules:
            note("oneOf")
        else:
            rules["anyOf"] = members
