"""Make a value that is valid for a JSON schema, because a stub that answers against the schema would test nothing."""

from collections.abc import Mapping
from typing import Any

from app.llm.testing.prompt import Prompt
from app.llm.testing.scalars import number_for, string_for

_MAX_DEPTH = 5
_TRIES_FOR_DISTINCT = 50
_COMBINED = ("allOf", "anyOf", "oneOf")
_REPETITIONS = 3
_TIGHTER = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
}
_SOONEST = ("null", "boolean", "string", "integer", "number", "array", "object")


def value_for(schema: Mapping[str, Any], prompt: Prompt) -> Any:  # JSON
    """Return a JSON value valid for `schema`, with words and numbers of `prompt` where they fit.

    Understood: type (also Gemini's upper case and nullable), enum, const, properties, required, items, prefixItems,
    the bounds of strings, numbers, arrays and objects, format, simple patterns, $ref into the schema itself, allOf,
    anyOf, oneOf. `not`, `if`, `contains` and dependencies are not looked at.
    """
    return _Maker(schema, prompt).make(schema, name="", place=0, depth=0)


class _Maker:
    def __init__(self, root: Mapping[str, Any], prompt: Prompt) -> None:
        self._root = root
        self._prompt = prompt

    def make(self, schema: Any, *, name: str, place: int, depth: int) -> Any:  # JSON
        """Return a value; `place` selects among possible ones, `name` is the property that holds it."""
        rules = self._resolved(schema, depth)
        kind = _type_of(rules)
        if "const" in rules:
            return rules["const"]
        if rules.get("enum"):
            return self._choice(rules["enum"], place)
        if kind == "object":
            return self._object(rules, place, depth)
        if kind == "array":
            return self._array(rules, name, place, depth)
        return self._scalar(rules, kind, name, place)

    def _scalar(self, rules: dict[str, Any], kind: str, name: str, place: int) -> Any:  # JSON
        match kind:
            case "integer" | "number":
                return number_for(rules, self._prompt, name, place, whole=kind == "integer")
            case "boolean":
                return place % 2 == 0
            case "null":
                return None
            case _:
                return string_for(rules, self._prompt, name, place)

    def _resolved(self, schema: Any, depth: int) -> dict[str, Any]:  # JSON
        """Return the schema with references followed and one branch of each choice taken."""
        rules = dict(schema) if isinstance(schema, Mapping) else {}
        while "$ref" in rules or any(key in rules for key in _COMBINED):
            if "$ref" in rules:
                rules = _merged(self._target(rules.pop("$ref")), rules)
                continue
            for part in rules.pop("allOf", ()):
                rules = _merged(rules, self._resolved(part, depth))
            for key in ("anyOf", "oneOf"):
                if branches := rules.pop(key, ()):
                    rules = _merged(rules, self._branch(branches, depth))
        if depth > _MAX_DEPTH and "null" in (rules.get("type") or ()):
            rules["type"] = "null"  # a recursive schema must end somewhere
        return rules

    def _branch(self, branches: list[Any], depth: int) -> Mapping[str, Any]:
        """Take the first branch that is not null; deep inside, the one that ends soonest."""
        if depth > _MAX_DEPTH:
            return min(branches, key=lambda each: _SOONEST.index(_type_of(each)))
        return next((each for each in branches if _type_of(each) != "null"), branches[0])

    def _target(self, reference: str) -> Mapping[str, Any]:
        found: Any = self._root
        for part in reference.lstrip("#").split("/"):
            if part:
                found = found[part.replace("~1", "/").replace("~0", "~")]
        return found if isinstance(found, Mapping) else {}

    def _choice(self, values: list[Any], place: int) -> Any:  # JSON
        named = [value for value in values if self._prompt.mentions(value)]
        rest = [value for value in values if value not in named and value is not None]
        ordered = [*named, *rest] or values
        return ordered[place % len(ordered)]

    def _object(self, rules: dict[str, Any], place: int, depth: int) -> dict[str, Any]:
        properties: Mapping[str, Any] = rules.get("properties") or {}
        required = list(rules.get("required") or ())
        optional = [key for key in properties if key not in required]
        least = int(rules.get("minProperties", 0))
        invented = [f"key{number}" for number in range(least)]
        known = len(required) + (0 if depth >= _MAX_DEPTH else len(optional))
        wanted = max(min(known, int(rules.get("maxProperties", known))), least, len(required))
        names = [*required, *optional, *invented][:wanted]
        other = rules.get("additionalProperties")
        return {
            key: self.make(properties.get(key, other), name=key, place=place, depth=depth + 1)
            for key in sorted(names, key=[*properties, *names].index)
        }

    def _array(self, rules: dict[str, Any], name: str, place: int, depth: int) -> list[Any]:
        fixed = list(rules.get("prefixItems") or ())
        items = rules.get("items")
        least = int(rules.get("minItems", 0))
        most = int(rules.get("maxItems", least + len(fixed) + _REPETITIONS))
        made = [self.make(each, name=name, place=place, depth=depth + 1) for each in fixed[:most]]
        wanted = min(most, max(least, 0 if fixed or depth >= _MAX_DEPTH else self._usual(items, depth)))
        singular = name.removesuffix("s")
        for further in range(wanted + _TRIES_FOR_DISTINCT):
            if len(made) >= wanted:
                break
            value = self.make(items, name=singular, place=place + further, depth=depth + 1)
            if value not in made or not rules.get("uniqueItems"):
                made.append(value)
        return made

    def _usual(self, items: Any, depth: int) -> int:  # JSON
        """A few words make a list of tags look alive; anything else is shown once."""
        return _REPETITIONS if _type_of(self._resolved(items, depth)) == "string" else 1


def _type_of(rules: Any) -> str:  # JSON
    if not isinstance(rules, Mapping):
        return "string"
    kind = rules.get("type")
    if isinstance(kind, list):
        kind = next((each for each in kind if each.lower() != "null"), "null")
    if isinstance(kind, str):
        return kind.lower()
    if "properties" in rules or "$ref" in rules:
        return "object"
    if "items" in rules or "prefixItems" in rules:
        return "array"
    return "number" if any(key in rules for key in ("minimum", "maximum", "multipleOf")) else "string"


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rules of both, bounds at their tightest."""
    both = {**base, **more}
    for key in base.keys() & more.keys():
        if key in _TIGHTER:
            both[key] = _TIGHTER[key](base[key], more[key])
        elif key == "properties":
            both[key] = {**base[key], **more[key]}
        elif key == "required":
            both[key] = list(dict.fromkeys([*base[key], *more[key]]))
    return both
