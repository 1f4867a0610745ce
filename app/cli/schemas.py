"""JSON Schemas from files: refused before anything is sent if no answer could be judged by them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator, SchemaError, validators  # type: ignore[import-untyped]  # it has no types
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from app.cli.faults import UsageFault
from app.cli.output import read_text
from app.llm.checks import Objection, Said
from app.llm.messages import ResponseFormat, TextPart
from app.llm.structured.reading import NotJson, read_json
from app.llm.structured.wanted import correction

MAX_FAULTS = 5
"""Faults that are named at once; the first ones explain the rest."""
MAX_FAULT_CHARS = 200


class BadAnswer(ValueError):
    """The text holds no JSON that fits; the arguments are its faults, with their JSON paths."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema that was checked, with the validator of its draft; as a `Check`, it judges answers."""

    document: dict[str, Any]
    _validator: Any  # jsonschema's
    tries: int = 2

    @property
    def form(self) -> ResponseFormat:
        """What a provider is held to."""
        return ResponseFormat.of_schema(self.document)

    def read(self, text: str) -> Any:  # JSON
        """Return the value that an answer holds, whatever stands around it.

        Raises:
            BadAnswer: There is none, or it does not fit.
        """
        try:
            value = read_json(text)
        except NotJson as fault:
            raise BadAnswer(f"$: {fault}") from None
        faults = sorted(self._validator.iter_errors(value), key=lambda fault: list(map(str, fault.path)))
        if faults:
            raise BadAnswer(*(_said(fault.json_path, fault.message) for fault in faults[:MAX_FAULTS]))
        return value

    def objection(self, said: Said) -> Objection | None:
        """Return what is wrong with an answer, and how the model is told."""
        text = "".join(part.text for part in said.parts if isinstance(part, TextPart))
        try:
            self.read(text)
        except BadAnswer as fault:
            return Objection(faults=fault.args, turns=correction(text, fault.args))
        return None


def load_schema(name: str) -> Schema:
    """Return the schema in a file: Draft 2020-12 unless its `$schema` names another.

    Raises:
        UsageFault: The file cannot be read, is no schema, does not describe an object, or refers to another file.
    """
    try:
        document = json.loads(read_text(name))
    except ValueError as error:
        raise UsageFault(f"{name}: $: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise UsageFault(f"{name}: $: a schema is a JSON object")
    kind = validators.validator_for(document, default=None) if "$schema" in document else Draft202012Validator
    if kind is None:
        raise UsageFault(f"{name}: $.$schema: {document['$schema']!r} is no known draft of JSON Schema")
    try:
        kind.check_schema(document)
    except SchemaError as error:
        raise UsageFault(f"{name}: {_said(error.json_path, error.message)}") from None
    if document.get("type") != "object" and not ("type" not in document and "$ref" in document):
        raise UsageFault(f'{name}: $.type: the root must be an object ("type": "object")')
    validator = kind(document, registry=Registry())  # a registry that fetches nothing
    _check_references(name, document, validator)
    return Schema(document, validator)


def _check_references(name: str, document: dict[str, Any], validator: Any) -> None:
    root = Resource.from_contents(document, default_specification=DRAFT202012)
    resolver = Registry().resolver_with_root(root)
    for path, target in _references(document, "$"):
        if not target.startswith("#"):
            raise UsageFault(f"{name}: {path}: {target!r} is outside of this file, and nothing is fetched")
        try:
            resolver.lookup(target)
        except Unresolvable:
            raise UsageFault(f"{name}: {path}: {target!r} is not in this file") from None
    try:
        validator.is_valid({})
    except RecursionError:
        raise UsageFault(f"{name}: $: a $ref leads back to itself") from None


def _references(node: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name in {"$ref", "$dynamicRef"} and isinstance(value, str):
                yield f"{path}.{name}", value
            yield from _references(value, f"{path}.{name}")
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from _references(value, f"{path}[{place}]")


def _said(path: str, message: str) -> str:
    return f"{path}: {message if len(message) <= MAX_FAULT_CHARS else message[:MAX_FAULT_CHARS] + '...'}"
