"""Fits objects: records, which every dialect knows, and maps, which half of them do not."""

from typing import Any

from app.llm.schemas.dialects import Json
from app.llm.schemas.merging import constrains
from app.llm.schemas.ports import Walk
from app.llm.schemas.references import below

_NEVER = (
    "patternProperties",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedProperties",
)

_NOTHING: tuple[Any, ...] = (None, True, {})


def fit_object(walk: Walk, rules: Json, path: str, fitted: Json) -> None:
    """Put what can be said of an object into `fitted`."""
    _note_the_rest(walk, rules, path, fitted)
    properties = {
        name: each for name, each in rules.get("properties", {}).items() if name not in walk.facts.lost_names
    }
    if len(properties) < len(rules.get("properties", {})):
        walk.note(path, "properties")
    if "properties" in rules:
        fitted["properties"] = {
            name: walk.node(each, below(path, "properties", name)) for name, each in properties.items()
        }
    required = [name for name in rules.get("required", ()) if name in properties]
    if required:
        fitted["required"] = required
    if not set(rules.get("required", ())) <= set(rules.get("properties", {})):
        walk.note(path, "required")
    _others(walk, rules, path, fitted)


def _note_the_rest(walk: Walk, rules: Json, path: str, fitted: Json) -> None:
    for key in _NEVER:
        if rules.get(key) not in _NOTHING:
            walk.note(path, key)
    for key in ("minProperties", "maxProperties"):
        if key in rules and key in walk.facts.keywords:
            fitted[key] = rules[key]
        elif key in rules:
            walk.note(path, key, rules[key])


def _others(walk: Walk, rules: Json, path: str, fitted: Json) -> None:
    """Put what holds for properties without a name. Without a word for it, a record has its own ones only."""
    others: Any = rules.get("additionalProperties")
    if isinstance(others, dict) and not constrains(others):
        others = True
    if rules.get("patternProperties"):
        others = True  # whatever fits a pattern is no additional property
    if others is None:
        return
    if "additionalProperties" in walk.facts.keywords:
        fitted["additionalProperties"] = (
            others if isinstance(others, bool) else walk.node(others, below(path, "additionalProperties"))
        )
    elif isinstance(others, dict) or (others and "properties" in fitted):
        walk.note(path, "additionalProperties")
