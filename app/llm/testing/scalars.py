"""Make strings and numbers inside the bounds of a schema, preferring what the prompt offers."""

import math
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import chain, count, islice
from typing import Any, TypeVar

from app.llm.testing.prompt import Prompt

_TRIES = 2_000
_TEXTS = 40
_UNBOUNDED = 10**6
_ATOM = re.compile(r"(\[\^?[^\]]+\]|\\.|[^\\\[\](){}|*+?^$.]|\.)(\{(\d+)(?:,(\d*))?\}|[*+?])?")
_SAMPLES = "a1A0bB2-_ .:/xyzXYZ3456789@+,#"
_T = TypeVar("_T", bound=Hashable)


def number_for(
    rules: Mapping[str, Any], prompt: Prompt, name: str, place: int, *, whole: bool
) -> int | float:
    """Return the number at `place` among those that satisfy the bounds, those of the prompt first.

    Raises:
        ValueError: The schema leaves no number that this search finds.
    """
    tried = islice(chain(prompt.numbers(name), _grid(rules)), _TRIES)
    found = _pick((number for number in tried if _fits(number, rules, whole=whole)), place)
    if found is None:
        raise ValueError(f"no number fits {dict(rules)}")
    return int(found) if whole else found


def string_for(rules: Mapping[str, Any], prompt: Prompt, name: str, place: int) -> str:
    """Return the string at `place` among those that satisfy format, pattern and lengths.

    A pattern with groups or alternatives is met only if a word of the prompt happens to match it.
    """
    if (kind := rules.get("format")) and (fixed := prompt.formatted(kind, place)) is not None:
        return fixed
    least = int(rules.get("minLength", 0))
    most = int(rules.get("maxLength", max(least, _UNBOUNDED)))
    texts = chain(_sized(prompt, name, least, most), _numbered(name, least, most))
    if pattern := rules.get("pattern"):
        matching = (text for text in texts if re.search(pattern, text))
        return _pick(matching, place) or sample(pattern, least)
    return _pick(texts, place) or ""


def sample(pattern: str, min_length: int = 0) -> str:
    """Return a text matching a pattern of plain characters, classes and repetitions; else `min_length` x's."""
    text = ""
    for atom, repeat, lower, upper in _ATOM.findall(pattern.removeprefix("^").removesuffix("$")):
        fewest, most = _repetitions(repeat, lower, upper)
        character = next((each for each in _SAMPLES if re.fullmatch(atom, each)), atom[-1])
        text += character * max(fewest, min(most, min_length - len(text)))
    return text if re.search(pattern, text) else "x" * min_length


def _repetitions(repeat: str, lower: str, upper: str) -> tuple[int, int]:
    if not lower:
        return {"": (1, 1), "?": (0, 1), "*": (0, _UNBOUNDED), "+": (1, _UNBOUNDED)}[repeat]
    fewest = int(lower)
    if "," not in repeat:
        return fewest, fewest
    return fewest, int(upper or _UNBOUNDED)


def _pick(values: Iterable[_T], place: int) -> _T | None:
    """Return the distinct value at `place`, the last one if there are fewer, None if there is none."""
    chosen: dict[_T, None] = {}
    for value in values:
        chosen[value] = None
        if len(chosen) > place:
            break
    return next(reversed(chosen), None)


def _grid(rules: Mapping[str, Any]) -> Iterator[float]:
    """Numbers near the bounds, on multiples of `multipleOf`."""
    low = max((rules[key] for key in ("minimum", "exclusiveMinimum") if key in rules), default=None)
    high = min((rules[key] for key in ("maximum", "exclusiveMaximum") if key in rules), default=None)
    step = rules.get("multipleOf") or 1
    if low is not None and high is not None and "multipleOf" not in rules:
        yield from (low, high, math.floor((low + high) / 2))
        yield from (low + (high - low) * part / 97 for part in range(1, 97))
    if low is None and high is not None:
        start, direction = math.floor(high / step), -1
    else:
        start, direction = math.ceil((1 if low is None else low) / step), 1
    yield from ((start + direction * offset) * step for offset in count())


def _fits(value: float, rules: Mapping[str, Any], *, whole: bool) -> bool:
    return (
        value >= rules.get("minimum", value)
        and value <= rules.get("maximum", value)
        and ("exclusiveMinimum" not in rules or value > rules["exclusiveMinimum"])
        and ("exclusiveMaximum" not in rules or value < rules["exclusiveMaximum"])
        and (not whole or value == int(value))
        and _is_multiple(value, rules.get("multipleOf"))
    )


def _is_multiple(value: float, step: float | None) -> bool:
    """Judge as the jsonschema package does: a float step divides if the float quotient is whole."""
    if not step:
        return True
    return value % step == 0 if isinstance(step, int) else (value / step).is_integer()


def _sized(prompt: Prompt, name: str, least: int, most: int) -> Iterator[str]:
    for text in islice(prompt.strings(name), _TEXTS):
        short = text[:most] or "x"[:most]
        yield (short * (least // max(1, len(short)) + 1))[: max(least, len(short))]


def _numbered(name: str, least: int, most: int) -> Iterator[str]:
    """More distinct texts, for arrays that want unique items."""
    return (f"{number}{name or 'value'}".ljust(least, "x")[:most] for number in range(_TEXTS))
