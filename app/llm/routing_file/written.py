"""A YAML or TOML file as a tree of texts with lines, because a fault is mended fastest where it stands."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUFFIXES = (".yaml", ".yml", ".toml")

_LINE_OF_TOML = re.compile(r"\s*\(at line (\d+), column \d+\)")
_YAML = "tag:yaml.org,2002:"
_TAGS = {f"{_YAML}{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")}


@dataclass(frozen=True, slots=True)
class Written:
    """One value of the file.

    Scalars are texts, as in a variable: then `off` is the same in YAML, in TOML and in the environment.
    """

    line: int
    """Of its key; of itself for an item of a YAML list. An item of a TOML list has the line of the list's key."""
    value: "str | tuple[Written, ...] | Mapping[str, Written] | None" = field(repr=False)
    """Not in repr: it may be a secret. None: the key is there and has no value."""


class Unreadable(ValueError):
    """A file, or a place in it, that cannot be read; `line` is None where no line is to blame."""

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


def read_written(path: Path) -> Written:
    """Return the whole file as one mapping; an empty file is an empty one.

    Raises:
        Unreadable: There is no such file, or it is no YAML, or no TOML.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise Unreadable("a routing file ends in .yaml, .yml or .toml")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Unreadable(error.strerror or type(error).__name__) from None
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 text (byte {error.start})") from None
    return _toml(text) if suffix == ".toml" else _yaml(text)


# -- YAML


def _yaml(text: str) -> Written:
    import yaml  # type: ignore[import-untyped]  # noqa: PLC0415  # only where a file is

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return Written(1, {}) if node is None else _of_node(node, 1, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Unreadable(f"no YAML: {error.problem}", mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise Unreadable(f"no YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise Unreadable("nested too deeply") from None


def _of_node(node: Any, line: int, above: tuple[Any, ...]) -> Written:  # PyYAML's nodes
    if any(node is each for each in above):
        raise Unreadable("an alias holds itself", line)
    if node.tag not in _TAGS:
        raise Unreadable(f"the tag {node.tag} is not known", line)
    if node.id == "scalar":
        return Written(line, None if node.tag == f"{_YAML}null" else str(node.value))
    within = (*above, node)
    if node.id == "sequence":
        return Written(line, tuple(_of_node(item, item.start_mark.line + 1, within) for item in node.value))
    members: dict[str, Written] = {}
    for key, value in node.value:
        here = key.start_mark.line + 1
        if key.id != "scalar" or key.tag not in _TAGS:
            raise Unreadable("a key is a plain text", here)
        if (first := members.get(key.value)) is not None:
            raise Unreadable(f"{key.value} is there twice, first in line {first.line}", here)
        members[str(key.value)] = _of_node(value, here, within)
    return Written(line, members)


# -- TOML


def _toml(text: str) -> Written:
    try:
        whole = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _LINE_OF_TOML.search(str(error))
        line = int(found[1]) if found else text.count("\n") + 1  # "at end of document"
        raise Unreadable(f"no TOML: {_LINE_OF_TOML.sub('', str(error))}", line) from None
    except RecursionError:
        raise Unreadable("nested too deeply") from None
    return _of_value(whole, (), 1, dict(_lines_of(text)))


def _of_value(value: Any, path: tuple[str, ...], line: int, lines: Mapping[tuple[str, ...], int]) -> Written:
    line = lines.get(path, line)
    if isinstance(value, dict):
        return Written(
            line, {name: _of_value(each, (*path, name), line, lines) for name, each in value.items()}
        )
    if isinstance(value, list):
        return Written(line, tuple(_of_value(each, (*path, "[]"), line, lines) for each in value))
    if isinstance(value, bool):
        return Written(line, str(value).lower())
    if isinstance(value, str | int | float):
        return Written(line, str(value))
    raise Unreadable(f"{'.'.join(path)}: no setting is a date", line)


def _lines_of(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the path of each key of a TOML text that can be read, with the line in which its statement begins.

    A statement is the fewest lines that can be read alone: a table's head or a key with its value, both of which
    begin in a line of their own (https://toml.io/en/v1.0.0).
    """
    held, start = "", 1
    table: tuple[str, ...] = ()
    seen: set[tuple[str, ...]] = set()
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        start = start if held else number
        held += f"{line}\n"
        try:
            said = tomllib.loads(held)
        except tomllib.TOMLDecodeError:
            continue
        head = held.lstrip().startswith("[")
        paths = list(_paths(said, () if head else table))
        table = paths[-1] if head else table
        for path in paths:
            if path not in seen:
                seen.add(path)
                yield path, start
        held = ""


def _paths(value: Any, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the path of every key, outer ones first."""
    for name, each in value.items() if isinstance(value, dict) else ():
        yield (*above, name)
        yield from _paths(each, (*above, name))
