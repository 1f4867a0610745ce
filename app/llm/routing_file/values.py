"""What a routing file says, as values of settings: its sections become fields, and an unknown key is a fault."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from app.llm.errors import LLMSettingsError
from app.llm.routing_file.written import Unreadable, Written, read_written

VARIABLE = "LLM_CONFIG_FILE"
SECTIONS = ("providers", "models", "profiles", "stages", "fallback", "budgets")
"""The keys of a file beside plain settings."""

_REFERENCE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\{")
_FIELDS_OF = {"models": "model_overrides", "stages": "stage_profiles"}
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_PLAIN = {"config_file", "providers_off", "budgets", *_FIELDS_OF.values()}
"""Fields that a file cannot name as they are: it has a section for them, or is what they name."""

Loc = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What a file may name."""

    fields: Collection[str]
    """Fields of the settings."""
    overrides: Collection[str]
    """What can be said of one model."""
    budgets: Collection[str]
    """What can be said of one budget."""
    providers: Collection[str]
    variable: Callable[[str], str | None]
    """What `${NAME}` stands for; nothing if it is not set."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands."""

    line: int
    key: str
    """`providers.ollama.num_ctx`, for instance."""
    text: str = field(repr=False)
    """As it is written, so that no variable's value shows; a list within brackets."""
    refers: bool = False
    """Whether it takes something from a variable."""


@dataclass(frozen=True, slots=True)
class FileValues:
    """What one file says."""

    path: Path
    values: Mapping[str, Any] = field(repr=False)
    """By the name of the field."""
    places: Mapping[Loc, Place]
    """By the field, and what is within it: `("model_overrides", "ollama:a", "num_ctx")`."""

    def place(self, loc: tuple[Any, ...]) -> Place | None:
        """Return where the value at `loc` stands, or else the nearest one around it."""
        names = tuple(map(str, loc))
        found = (self.places.get(names[:length]) for length in range(len(names), 0, -1))
        return next((place for place in found if place is not None), None)


def read_values(path: Path, known: Known) -> FileValues:
    """Return what a routing file says.

    Raises:
        LLMSettingsError: It cannot be read, or holds unknown keys, or names variables that are not set; each with its line.
    """
    reading, told = _Reading(known), ""
    try:
        reading.read(read_written(path))
    except Unreadable as fault:
        told = f"{path if fault.line is None else f'{path}:{fault.line}'}: {fault}"
    told = told or "; ".join(f"{path}:{line}: {text}" for line, text in sorted(reading.faults))
    if told:
        raise LLMSettingsError(
            told, variable=VARIABLE
        )  # here, without the parser's error, which holds the file
    return FileValues(path, reading.values, reading.places)


@dataclass(slots=True)
class _Reading:
    """One file on its way from a tree to values."""

    known: Known
    values: dict[str, Any] = field(default_factory=dict, repr=False)
    places: dict[Loc, Place] = field(default_factory=dict)
    faults: list[tuple[int, str]] = field(default_factory=list)

    def read(self, root: Written) -> None:
        sections = {
            "providers": self._providers,
            "models": self._models,
            "profiles": self._profiles,
            "stages": self._stages,
            "budgets": self._budgets,
        }
        for name, written in self._members(root, ""):
            if name in sections:
                sections[name](written)
            elif name in self.known.fields and name not in _PLAIN and self._spelled_elsewhere(name) is None:
                self._set((name,), written, name)
            else:
                self._unknown(name, written, "", self._top_level())

    def _top_level(self) -> list[str]:
        plain = (
            name for name in self.known.fields if name not in _PLAIN and not self._spelled_elsewhere(name)
        )
        return [*SECTIONS, *plain]

    def _spelled_elsewhere(self, name: str) -> str | None:
        """Return the one way to write a field that belongs into a section; None for a plain setting."""
        for provider in self.known.providers:
            if name.startswith(f"{provider}_"):
                return f"providers.{provider}.{name.removeprefix(f'{provider}_')}"
        return f"profiles.{name.removeprefix('profile_')}" if name.startswith("profile_") else None

    def _providers(self, section: Written) -> None:
        off: list[str] = []
        for provider, written in self._members(section, "providers"):
            key = f"providers.{provider}"
            if provider not in self.known.providers:
                self._unknown(provider, written, "providers", self.known.providers)
            elif isinstance(written.value, str):
                off += self._off(provider, written, key)
            else:
                off += self._provider(provider, written, key)
        if ("providers_off",) in self.places:
            self.values["providers_off"] = tuple(off)

    def _provider(self, provider: str, section: Written, key: str) -> Iterator[str]:
        names = {
            each.removeprefix(f"{provider}_") for each in self.known.fields if each.startswith(f"{provider}_")
        }
        for name, written in self._members(section, key):
            if name == "enabled":
                yield from self._off(provider, written, f"{key}.enabled")
            elif name in names:
                self._set((f"{provider}_{name}",), written, f"{key}.{name}")
            else:
                self._unknown(name, written, key, {"enabled", *names})

    def _off(self, provider: str, written: Written, key: str) -> list[str]:
        """Return the provider if it is switched off."""
        said = self._text(written, key)
        if said is None:
            return []
        if said.lower() not in (*_YES, *_NO):
            self.faults.append((written.line, f"{key} is neither on nor off"))
        self.places.setdefault(("providers_off",), _place(written, key))
        return [provider] if said.lower() in _NO else []

    def _models(self, section: Written) -> None:
        field_of = _FIELDS_OF["models"]
        self.places[field_of,] = _place(section, "models")
        for model, written in self._members(section, "models"):
            key = f"models.{model}"
            if model.partition(":")[0] not in self.known.providers:
                self._unknown(model, written, "models", [f"{each}:MODEL" for each in self.known.providers])
                continue
            self.places[field_of, model] = _place(written, key)
            self.values.setdefault(field_of, {})[model] = {}
            for name, said in self._members(written, key):
                if name in self.known.overrides:
                    self._set((field_of, model, name), said, f"{key}.{name}")
                else:
                    self._unknown(name, said, key, self.known.overrides)

    def _profiles(self, section: Written) -> None:
        names = [each.removeprefix("profile_") for each in self.known.fields if each.startswith("profile_")]
        for name, written in self._members(section, "profiles"):
            if name in names:
                self._set((f"profile_{name}",), written, f"profiles.{name}")
            else:
                self._unknown(name, written, "profiles", names)

    def _stages(self, section: Written) -> None:
        for stage, written in self._members(section, "stages"):
            self._set((_FIELDS_OF["stages"], stage), written, f"stages.{stage}")

    def _budgets(self, section: Written) -> None:
        """Keep each budget under its place in the list."""
        if not isinstance(section.value, tuple | None):
            self.faults.append((section.line, f"budgets holds a list of budgets, not {_kind(section)}"))
            return
        for at, item in enumerate(section.value or ()):
            key, place = f"budgets[{at}]", str(at)
            self.places.setdefault(("budgets",), _place(section, "budgets"))
            self.places["budgets", place] = _place(item, key)
            self.values.setdefault("budgets", {})[place] = {}
            for name, written in self._members(item, key):
                if name in self.known.budgets:
                    self._set(("budgets", place, name), written, f"{key}.{name}")
                else:
                    self._unknown(name, written, key, self.known.budgets)

    # -- values

    def _members(self, section: Written, key: str) -> Iterator[tuple[str, Written]]:
        """Yield what stands in a section; one without a value is empty."""
        if isinstance(section.value, Mapping):
            yield from section.value.items()
        elif section.value is not None:
            self.faults.append(
                (section.line, f"{key or 'the file'} holds names and values, not {_kind(section)}")
            )

    def _set(self, loc: Loc, written: Written, key: str) -> None:
        """Keep a value; one that is empty counts as unset, as an empty variable does."""
        value: str | tuple[str, ...] | None
        if isinstance(written.value, tuple):
            texts = [self._text(item, key) for item in written.value]
            value = tuple(text for text in texts if text is not None)
        else:
            value = self._text(written, key)
        if value is None:
            return
        self.places[loc] = _place(written, key)
        inner = self.values
        for name in loc[:-1]:
            inner = inner.setdefault(name, {})
        inner[loc[-1]] = value

    def _text(self, written: Written, key: str) -> str | None:
        """Return a scalar with its `${NAME}` filled in; None for one that is empty, or that is no scalar."""
        if isinstance(written.value, str):
            return _REFERENCE.sub(lambda found: self._filled(found, written.line, key), written.value) or None
        if written.value is not None:
            self.faults.append((written.line, f"{key} holds one value, not {_kind(written)}"))
        return None

    def _filled(self, found: re.Match[str], line: int, key: str) -> str:
        if found[0] == "$${":
            return "${"
        if found[1] is None:
            self.faults.append(
                (line, f"{key}: `${{` begins no name: write ${{NAME}}, or $${{ for the text itself")
            )
            return ""
        if not (value := self.known.variable(found[1])):
            self.faults.append((line, f"{key}: the variable {found[1]} is not set"))
        return value or ""

    def _unknown(self, name: str, written: Written, section: str, known: Collection[str]) -> None:
        key = f"{section}.{name}" if section else name
        elsewhere = self._spelled_elsewhere(name) if not section and name in self.known.fields else None
        near = get_close_matches(name, sorted(known), n=1) or [
            each for each in known if each.endswith(f"_{name}")
        ]
        meant = elsewhere or (f"{section}.{near[0]}" if section and near else near[0] if near else None)
        names = (
            ", ".join(sorted(known)) if section else f"{', '.join(SECTIONS)}, and each setting without LLM_"
        )
        advice = f"{meant} was meant?" if meant else f"known: {names}"
        self.faults.append((written.line, f"{key} is not known here: {advice}"))


def _place(written: Written, key: str) -> Place:
    texts = _texts(written)
    refers = any(_REFERENCE.search(text) for text in texts)
    listed = f"[{', '.join(texts)}]" if isinstance(written.value, tuple) else _kind(written)
    return Place(written.line, key, written.value if isinstance(written.value, str) else listed, refers)


def _texts(written: Written) -> list[str]:
    if isinstance(written.value, tuple):
        return [text for item in written.value for text in _texts(item)]
    return [written.value] if isinstance(written.value, str) else []


def _kind(written: Written) -> str:
    """Return what a value is, in words that hold nothing of it: it may be a secret in a wrong place."""
    kinds = {str: "a text", tuple: "a list", type(None): "nothing"}
    return kinds.get(type(written.value), "a mapping")
