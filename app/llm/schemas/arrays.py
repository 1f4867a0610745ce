"""Fits arrays: lists, and tuples, which a grammar knows in one length only and half of the dialects not at all."""

from typing import Any

from app.llm.schemas.dialects import Json
from app.llm.schemas.patterns import MAX_REPETITIONS
from app.llm.schemas.ports import Walk
from app.llm.schemas.references import below


def fit_array(walk: Walk, rules: Json, path: str, fitted: Json) -> None:
    """Put what can be said of an array into `fitted`."""
    for key in ("uniqueItems", "contains", "unevaluatedItems"):
        if rules.get(key, False) is not False or (key == "unevaluatedItems" and key in rules):
            walk.note(path, key, rules[key])
    first = rules.get("prefixItems")
    items = rules.get("items", True)
    if isinstance(items, list):  # a tuple as drafts before 2020-12 write it
        first, items = items, rules.get("additionalItems", True)
    counts: Json = {key: rules[key] for key in ("minItems", "maxItems") if key in rules}
    if first is not None:
        if items is False:
            counts["maxItems"] = min(counts.get("maxItems", len(first)), len(first))
            items = True
        _tuple(walk, first, items, counts, path, fitted)
    elif items is False:
        counts["maxItems"] = 0
    elif "items" in rules or walk.facts.narrows:
        fitted["items"] = walk.node(items, below(path, "items"))
    _counts(walk, counts, path, fitted)


def _tuple(walk: Walk, first: list[Any], items: Any, counts: Json, path: str, fitted: Json) -> None:
    facts, length = walk.facts, len(first)
    exact = counts.get("minItems", 0) == length == counts.get("maxItems")
    if first and "prefixItems" in facts.keywords and (exact or not facts.grammar):
        fitted["prefixItems"] = [
            walk.node(each, below(path, "prefixItems", place)) for place, each in enumerate(first)
        ]
        if counts.get("maxItems", length + 1) > length and items is not True:
            fitted["items"] = walk.node(items, below(path, "items"))
        return
    others = [items] if counts.get("maxItems", length + 1) > length else []
    members = [*first, *others]
    if any(each != members[0] for each in members):
        walk.note(path, "prefixItems")
    fitted["items"] = walk.union(members or [True], below(path, "prefixItems"), {}, keyword="")


def _counts(walk: Walk, counts: Json, path: str, fitted: Json) -> None:
    for key, value in counts.items():
        refused = walk.facts.grammar and value >= MAX_REPETITIONS
        if key in walk.facts.keywords and not refused:
            fitted[key] = value
        else:
            walk.note(path, key, value)
