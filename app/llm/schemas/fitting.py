"""Fits a JSON schema to what a provider can be told, and says what is lost, with its place, before anything is sent."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from app.llm.schemas.arrays import fit_array
from app.llm.schemas.dialects import FACTS, Json, SchemaDialect
from app.llm.schemas.merging import CONSTRAINTS, OF_TYPE, constrains, gathered
from app.llm.schemas.objects import fit_object
from app.llm.schemas.references import References, below, endless
from app.llm.schemas.scalars import fit_number, fit_string
from app.llm.schemas.values import of_type, shown, type_of

COPIES_WITHIN_ITSELF = 2
"""How often a definition is copied into itself where references cannot stay."""

MAX_NODES = 10_000
"""Schemas that copies may grow to; past that a reference keeps the type only."""

_FITTERS = {
    "string": fit_string,
    "integer": fit_number,
    "number": fit_number,
    "array": fit_array,
    "object": fit_object,
}


class Misfit(NamedTuple):
    """Something of a schema that a provider cannot be told."""

    path: str
    """JSON pointer of the schema that holds it; within a definition if it was reached through `$ref`."""
    keyword: str
    """What cannot be told; `nesting` for too many levels, `false` for a schema that accepts nothing."""
    narrowed: bool = False
    """Whether what is sent accepts less there, since the provider has no word for any value, or takes objects
    only; else it accepts more."""


class Fitted(NamedTuple):
    """What is sent instead of a schema, and what that leaves out."""

    schema: Json
    misfits: tuple[Misfit, ...]


def fit(schema: Mapping[str, Any], dialect: SchemaDialect) -> Fitted:
    """Return `schema` in a dialect. Whatever fits the original fits the result, where no misfit is `narrowed`.

    What says nothing about values (titles, defaults, examples, discriminators) goes without being a misfit; so does
    what can be said in other words. What is kept is in the order of the original, and shares nothing with it.
    """
    return Fitting(schema, dialect).fitted()


class Fitting:
    """One schema on its way into one dialect; the fitters of the types call back into it."""

    def __init__(self, schema: Mapping[str, Any], dialect: SchemaDialect) -> None:
        self.facts = FACTS[dialect]
        self._root = schema
        self._references = References(schema)
        self._definitions: dict[str, Any] = {}
        self._paths: dict[int, str] = {}
        self._misfits: dict[Misfit, None] = {}
        self._lost: dict[str, list[str]] = {}
        self._within: list[str] = []
        self._depth = 0
        self._nodes = 0

    def fitted(self) -> Fitted:
        """Return the result; to be asked once."""
        whole = self.node(self._root, "")
        if self.facts.parameters:
            whole = self._as_parameters(whole)
        if self._definitions:
            self._loosen_cycles()
            whole["$defs"] = self._definitions
        return Fitted(whole, tuple(self._misfits))

    def node(self, schema: Any, path: str) -> Json:
        """Return one schema in the dialect; to be told in its description what else it asks for."""
        self._depth += 1
        self._nodes += 1
        try:
            fitted = self._node(schema, path)
        finally:
            self._depth -= 1
        self._paths[id(fitted)] = path
        if (lost := self._lost.pop(path, None)) and "$ref" not in fitted:
            said = [fitted["description"]] if "description" in fitted else []
            fitted["description"] = " ".join([*said, f"({'; '.join(lost)})"])
        return fitted

    def note(self, path: str, keyword: str, value: Any = None) -> None:
        """Record what cannot be told."""
        self._misfits[Misfit(path, keyword)] = None
        if self.facts.told and value is not None and (words := shown(keyword, value)):
            lost = self._lost.setdefault(path, [])
            if words not in lost:
                lost.append(words)

    def anything(self, path: str, annotations: Json | None = None) -> Json:
        """Return the schema of any value."""
        if self.facts.narrows:
            self._misfits[Misfit(path, "type", narrowed=True)] = None
        return {**(annotations or {}), **_copied(self.facts.anything)}

    def union(self, members: list[Any], path: str, annotations: Json, keyword: str = "anyOf") -> Json:
        """Return a choice between schemas, the same one only once, choices among them opened."""
        fitted: list[Json] = []
        for number, member in enumerate(members):
            place = below(path, keyword, number) if keyword else path
            if member is True or (isinstance(member, Mapping) and not constrains(member)):
                return self.anything(path, annotations)
            one = self.node(member, place)
            for each in one["anyOf"] if one.keys() == {"anyOf"} else [one]:
                if each not in fitted:
                    fitted.append(each)
        if not fitted:
            self.note(path, "anyOf")
            return self.anything(path, annotations)
        if len(fitted) == 1 and "$ref" not in fitted[0]:
            return {**fitted[0], **annotations}
        return {**annotations, "anyOf": fitted}

    def _node(self, schema: Any, path: str) -> Json:
        if not isinstance(schema, Mapping):
            if schema is not True:
                self.note(path, "false")
            return self.anything(path)
        rules = gathered(schema, self._resolved, lambda keyword: self.note(path, keyword))
        annotations = {key: rules[key] for key in self.facts.annotations if key in rules}
        for key in ("not", "if", "$dynamicRef"):
            if key in rules:
                self.note(path, key, rules.pop(key))
        if self._depth > self.facts.max_depth:
            self.note(path, "nesting")
            return self._bare(rules, path)
        if "$ref" in rules:
            return self._reference(rules, path, annotations)
        if "anyOf" in rules and not self._beside_the_union(rules, path):
            return self.union(rules["anyOf"], path, annotations)
        return self._typed(rules, path, annotations)

    def _beside_the_union(self, rules: Json, path: str) -> bool:
        """Return whether other constraints stand beside `anyOf`; they stay then, and it goes: none takes both."""
        beside = [key for key in rules if key in CONSTRAINTS and key != "anyOf"]
        if beside:
            self.note(path, "anyOf")
        return bool(beside)

    def _typed(self, rules: Json, path: str, annotations: Json) -> Json:
        types = rules.get("type") or self._types_meant(rules)
        if isinstance(types, list):
            if len(types) != 1:
                choices = [{**self._plain(rules), "type": each} for each in types]
                possible = [
                    each for each in choices if "enum" not in each or of_type(each["enum"], each["type"])
                ]
                return self.union(possible, path, annotations, keyword="")
            types = types[0]
        if types is None:
            for key in sorted(rules.keys() & CONSTRAINTS):
                self.note(path, key, rules[key])
            return self.anything(path, annotations)
        fitted = {**annotations, "type": types}
        if "enum" in rules and self._enum(rules, path, fitted):
            return fitted
        if fitter := _FITTERS.get(types):
            fitter(self, rules, path, fitted)
        if "type" not in rules and "enum" not in rules:
            del fitted["type"]  # a value of another type fits the original
        return fitted

    def _types_meant(self, rules: Json) -> list[str] | str | None:
        """Return the types that a schema without any is about."""
        if "enum" in rules:
            types = list(dict.fromkeys(type_of(value) for value in rules["enum"]))
            return [each for each in types if each != "integer" or "number" not in types] or None
        return next((each for each in ("object", "array") if rules.keys() & OF_TYPE[each]), None)

    def _enum(self, rules: Json, path: str, fitted: Json) -> bool:
        """Put the listed values; return whether nothing else has to be said."""
        name = fitted["type"]
        values = of_type(rules["enum"], name)
        if name == "null":
            return True
        sayable = name in self.facts.enums and not ("" in values and self.facts.narrows)
        if sayable and values:
            fitted["enum"] = values
            for key in sorted(rules.keys() & OF_TYPE.get(name, frozenset())):
                self.note(path, key)
        elif name != "boolean" or len(values) == 1:
            self.note(path, "enum", values)
        return bool(sayable and values)

    def _reference(self, rules: Json, path: str, annotations: Json) -> Json:
        reference = rules["$ref"]
        try:
            target = self._references.target(reference)
        except LookupError:
            self.note(path, "$ref", reference)
            return self.anything(path, annotations)
        beside = {key: value for key, value in rules.items() if key in CONSTRAINTS and key != "$ref"}
        if self.facts.references and not beside:
            named = {"$ref": f"#/$defs/{self._defined(reference, target)}"}
            return (
                {**annotations, "anyOf": [named]}
                if annotations and self.facts.told
                else {**annotations, **named}
            )
        if self._within.count(reference) >= COPIES_WITHIN_ITSELF or self._nodes > MAX_NODES:
            self.note(path, "$ref")
            return self._bare(target, path)
        copied = {**target, **annotations} if isinstance(target, Mapping) else target
        self._within.append(reference)
        fitted = self.node({"allOf": [copied, beside], **annotations} if beside else copied, reference[1:])
        self._within.pop()
        return fitted

    def _defined(self, reference: str, target: Any) -> str:
        """Return the name of a definition, which is fitted when it is met first."""
        name = self._references.name(reference)
        if name not in self._definitions:
            self._definitions[name] = {}  # reserved: it may refer to itself
            depth, self._depth = self._depth, 0
            self._definitions[name] = self.node(target, reference[1:])
            self._depth = depth
        return name

    def _resolved(self, schema: Any) -> Any:
        """Return what a part of `allOf` says, its reference followed; True (anything) where that leads nowhere."""
        followed: list[str] = []
        while isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
            reference = schema["$ref"]
            beside = {key: value for key, value in schema.items() if key != "$ref"}
            if reference in followed:
                return beside
            followed.append(reference)
            try:
                target = self._references.target(reference)
            except LookupError:
                self._misfits[Misfit("", "$ref")] = None
                return beside
            schema = {**target, **beside} if isinstance(target, Mapping) else target
        return schema

    def _bare(self, schema: Any, path: str) -> Json:
        """Return the type of a schema, and nothing else of it."""
        name = schema.get("type") if isinstance(schema, Mapping) else None
        known = isinstance(name, str) and name in _FITTERS and name != "array"
        return {"type": name} if known else self.anything(path)

    def _plain(self, rules: Json) -> Json:
        return {key: value for key, value in rules.items() if key in CONSTRAINTS}

    def _as_parameters(self, whole: Json) -> Json:
        if whole.get("type") != "object":
            self._misfits[Misfit("", "type", narrowed=True)] = None
            whole = {key: whole[key] for key in ("description",) if key in whole} | {"type": "object"}
        return whole if self.facts.narrows else {**whole, "properties": whole.get("properties", {})}

    def _loosen_cycles(self) -> None:
        """Let a property of each endless cycle be left out; where there is none, the cycle ends at its type."""
        while self.facts.cycles_need_an_option and (use := endless(self._definitions)) is not None:
            if use.owner is None:
                self.note(self._paths.get(id(use.node), ""), "$ref")
                bare = self._bare(self._definitions[use.target], "")
                use.node.clear()
                use.node.update(bare)
            else:
                self.note(self._paths.get(id(use.owner), ""), "required")
                use.owner["required"].remove(use.property)
                if not use.owner["required"]:
                    del use.owner["required"]


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list | tuple) else value
