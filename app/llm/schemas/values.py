"""What concerns single values: to which type of JSON schema one belongs, and how bounds become ones that can be said."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

_TYPES: Mapping[type, str] = {
    bool: "boolean",  # before int, which it is too
    int: "integer",
    float: "number",
    str: "string",
    type(None): "null",
    Mapping: "object",
}
_SHOWN_CHARS = 200

LONGEST_BOUND = 10**15
"""Integers from here on have no exact rule in llama.cpp's grammar: 16 digits (`json-schema-to-grammar.cpp`)."""


def type_of(value: object) -> str:
    """Return the type of a JSON value; an integer is one although it is a number too."""
    if isinstance(value, float) and value.is_integer():
        return "integer"
    return next((name for kind, name in _TYPES.items() if isinstance(value, kind)), "array")


def of_type(values: Sequence[Any], name: str) -> list[Any]:
    """Return the values that a schema of this type accepts."""
    fitting = {name, "integer"} if name == "number" else {name}
    return [value for value in values if type_of(value) in fitting]


def whole_bounds(rules: Mapping[str, Any]) -> dict[str, int]:
    """Return the bounds of an integer as `minimum` and `maximum`."""
    least = [math.ceil(rules["minimum"])] if "minimum" in rules else []
    if "exclusiveMinimum" in rules:
        least.append(math.floor(rules["exclusiveMinimum"]) + 1)
    most = [math.floor(rules["maximum"])] if "maximum" in rules else []
    if "exclusiveMaximum" in rules:
        most.append(math.ceil(rules["exclusiveMaximum"]) - 1)
    return {
        **({"minimum": max(least)} if least else {}),
        **({"maximum": min(most)} if most else {}),
    }


def shown(keyword: str, value: object) -> str:
    """Return a constraint in words for a description; empty if it would be long or is a schema."""
    if isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(v, Mapping) for v in value)):
        return ""
    text = f"{keyword}: {json.dumps(value, ensure_ascii=False)}"
    return text if len(text) <= _SHOWN_CHARS else ""
