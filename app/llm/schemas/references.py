"""Finds what a `$ref` points at, names it for the grammar, and finds the cycles that no answer could leave."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from app.llm.schemas.dialects import Json

_NOT_IN_A_RULE = re.compile(r"[^A-Za-z0-9-]+")
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


def below(path: str, *parts: str | int) -> str:
    """Return the JSON pointer of something below `path` (RFC 6901)."""
    return "".join([path, *("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)])


@dataclass(slots=True)
class References:
    """The definitions of one schema."""

    root: Mapping[str, Any]
    names: dict[str, str] = field(default_factory=dict)
    """What was referred to -> its name under `$defs`."""

    def target(self, reference: object) -> Any:
        """Return the schema that a local reference points at.

        Raises:
            LookupError: It points at nothing in this schema.
        """
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise LookupError(reference)
        found: Any = self.root
        for part in reference[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (TypeError, ValueError):
                raise LookupError(reference) from None
        if isinstance(found, Mapping | bool):
            return found
        raise LookupError(reference)

    def name(self, reference: str) -> str:
        """Return a name for what is referred to. No two give the same rule of a llama.cpp grammar.

        It makes a rule's name of a definition's by one hyphen for all that is no letter or digit, and does not notice
        when two become equal; nor does it resolve escapes in a pointer.
        """
        if reference not in self.names:
            last = reference.rpartition("/")[2]
            wanted = last if _PLAIN.fullmatch(last) else _NOT_IN_A_RULE.sub("-", last).strip("-") or "root"
            taken = {_NOT_IN_A_RULE.sub("-", name) for name in self.names.values()}
            name, number = wanted, 1
            while _NOT_IN_A_RULE.sub("-", name) in taken:
                number += 1
                name = f"{wanted}-{number}"
            self.names[reference] = name
        return self.names[reference]


class Use(NamedTuple):
    """A reference that every value of its definition holds."""

    source: str
    target: str
    node: Json
    """Where it stands."""
    owner: Json | None
    """The innermost object around it, None without one."""
    property: str
    """Its property of that object."""


def endless(definitions: Mapping[str, Any]) -> Use | None:
    """Return a reference that closes a cycle in which no property may be left out; None if there is no such cycle."""
    uses = [use for name, schema in definitions.items() for use in _held(schema, name, None, "")]
    onward: dict[str, set[str]] = {}
    for use in uses:
        onward.setdefault(use.source, set()).add(use.target)
    return next((use for use in uses if use.source in _reached(use.target, onward)), None)


def _reached(start: str, onward: Mapping[str, set[str]]) -> set[str]:
    reached, ahead = {start}, [start]
    while ahead:
        for target in onward.get(ahead.pop(), set()) - reached:
            reached.add(target)
            ahead.append(target)
    return reached


def _held(schema: Any, source: str, owner: Json | None, of: str) -> Iterator[Use]:
    """Yield the references below `schema` that are not within a property that may be left out."""
    if not isinstance(schema, dict):
        return
    if "$ref" in schema:
        yield Use(source, schema["$ref"].removeprefix("#/$defs/"), schema, owner, of)
    for name, inner in schema.get("properties", {}).items():
        if name in schema.get("required", ()):
            yield from _held(inner, source, schema, name)
    for key in ("items", "additionalProperties"):
        yield from _held(schema.get(key), source, owner, of)
    for key in ("anyOf", "prefixItems"):
        for inner in schema.get(key, ()):
            yield from _held(inner, source, owner, of)
