"""Fits the constraints of texts and numbers."""

from app.llm.schemas.dialects import Json
from app.llm.schemas.merging import OF_TYPE
from app.llm.schemas.patterns import MAX_REPETITIONS, is_plain
from app.llm.schemas.ports import Walk
from app.llm.schemas.values import LONGEST_BOUND, whole_bounds

NO_CONSTRAINT = frozenset(
    ("password", "path", "file-path", "directory-path", "binary", "float", "double", "int32", "int64")
)
"""Formats that a text or number of their type has anyhow, as far as a model can know."""


def fit_string(walk: Walk, rules: Json, path: str, fitted: Json) -> None:
    """Put what can be said of a text into `fitted`; a grammar takes one kind of constraint only."""
    facts = walk.facts
    sayable = {key: rules[key] for key in ("pattern", "format", "minLength", "maxLength") if key in rules}
    if sayable.get("format") in NO_CONSTRAINT:
        del sayable["format"]
    kept: Json = {}
    for key, value in sayable.items():
        crowded = facts.grammar and bool(kept) and not (key == "maxLength" and kept.keys() == {"minLength"})
        known = value in facts.formats if key == "format" else key in facts.keywords
        if known and not crowded and not (facts.grammar and _is_refused(key, value)):
            kept[key] = value
        else:
            walk.note(path, key, value)
    fitted.update({key: kept[key] for key in rules if key in kept})


def fit_number(walk: Walk, rules: Json, path: str, fitted: Json) -> None:
    """Put the bounds of a number into `fitted`; an exclusive one of an integer is an inclusive one."""
    facts, whole = walk.facts, fitted["type"] == "integer"
    bounds = (
        whole_bounds(rules) if whole else {key: rules[key] for key in ("minimum", "maximum") if key in rules}
    )
    if fitted["type"] not in facts.bounded or not facts.keywords & bounds.keys():
        bounds = {key: rules[key] for key in OF_TYPE["number"] & rules.keys() if key != "multipleOf"}
        for key in sorted(bounds):
            walk.note(path, key, bounds[key])
    else:
        for key, value in bounds.items():
            if facts.grammar and abs(value) >= LONGEST_BOUND:
                walk.note(path, key, value)
            else:
                fitted[key] = value
        if not whole:
            _exclusive(walk, rules, path, fitted)
    if "multipleOf" in rules:
        walk.note(path, "multipleOf", rules["multipleOf"])


def _exclusive(walk: Walk, rules: Json, path: str, fitted: Json) -> None:
    """Put exclusive bounds of a number as inclusive ones, which let one value more through."""
    for key, inclusive, tighter in (
        ("exclusiveMinimum", "minimum", max),
        ("exclusiveMaximum", "maximum", min),
    ):
        if key in rules:
            walk.note(path, key, rules[key])
            fitted[inclusive] = tighter(rules[key], fitted.get(inclusive, rules[key]))


def _is_refused(key: str, value: object) -> bool:
    """Return whether llama.cpp would refuse the whole grammar for this constraint."""
    if key == "pattern":
        return not is_plain(str(value))
    return key != "format" and isinstance(value, int) and value >= MAX_REPETITIONS
