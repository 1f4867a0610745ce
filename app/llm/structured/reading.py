"""Reads the JSON that an answer holds, however it is wrapped: strictly if that goes, else repaired, never guessed.

What `json-repair` makes of a text counts only if it is a reading of that text (`faithful.py`): the library also
completes what was cut off and closes quotes where it likes, and nothing of that may pass for what a model said.
"""

import json
import math
import re
from typing import Any, NamedTuple, NoReturn

from app.llm.structured.faithful import is_reading_of

MAX_REPAIRED_CHARS = 50_000
"""Longer texts are not repaired: the library takes some 4 us a character, on the event loop."""

_FENCED = re.compile(r"```[ \t]*[\w-]*[ \t]*\n?(.*?)```", re.DOTALL)
_OPEN_FENCE = re.compile(r"```[ \t]*[\w-]*[ \t]*\n")
_OPENER = re.compile(
    r"""\{(?=\s*(?:["'\w}“”/#,]|$)) | \[(?=\s*(?:["'{\[\]\d/#,“-]|true|false|null|True|False|None|$))""",
    re.VERBOSE,
)
"""Where JSON may begin; `[the]` and `{{` of a prose do not look like it."""
_LEFT_OVER = re.compile(r"""[{}]|["'”]\s*:""")
"""What no prose around an answer holds: it would be a piece of the answer."""


class NotJson(ValueError):
    """The text holds no JSON, or more than one, or one that cannot be repaired without guessing."""


def read_json(text: str) -> Any:
    """Return the one JSON value that an answer holds.

    Code fences, prose around the value, and faults of notation (commas, quotes, comments, Python's words) are taken
    off. A value that stands in the text as valid JSON is returned as it stands.

    Raises:
        NotJson: There is none, there are several, or what there is is cut off or cannot be read in one way only.
    """
    text = text.strip().lstrip("\ufeff")
    if not text:
        raise NotJson("the answer is empty")
    try:
        return strict_json(text)
    except NotJson as fault:
        reason = fault
    body = _body(text)
    found = _embedded(body)
    if found.values:
        return _only(found)
    if found.begins_at is None:
        raise reason
    return _repaired(body[found.begins_at :])


def strict_json(text: str) -> Any:
    """Return the value of a text that is JSON from end to end; NaN and infinite numbers are none.

    Raises:
        NotJson: It is not.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise NotJson(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise NotJson(f"not JSON: {error}") from None


def _body(text: str) -> str:
    """Return what the answer's code fences hold, or all of it where there are none."""
    blocks = [block for block in _FENCED.findall(text) if _OPENER.search(block)]
    if len(blocks) > 1:
        raise NotJson("the answer holds several blocks of code: write one JSON value alone")
    if blocks:
        return str(blocks[0])
    opened = _OPEN_FENCE.search(text)
    return text[opened.end() :] if opened else text


class _Found(NamedTuple):
    """The valid JSON values of a text, and what is around them."""

    values: list[Any]
    around: str
    begins_at: int | None
    """Where the first thing begins that looks like JSON."""


def _embedded(text: str) -> _Found:
    """Return the values that stand in a text one after another; none if one of them is broken."""
    values: list[Any] = []
    around, at, first = "", 0, None
    while (opener := _OPENER.search(text, at)) is not None:
        first = opener.start() if first is None else first
        try:
            value, end = _DECODER.raw_decode(text, opener.start())
        except (ValueError, RecursionError):
            return _Found([], "", first)
        around, at = around + text[at : opener.start()], end
        values.append(value)
    return _Found(values, around + text[at:], first)


def _only(found: _Found) -> Any:
    if _LEFT_OVER.search(found.around):
        raise NotJson("the answer holds pieces of JSON beside a JSON value: write one JSON value alone")
    objects = [value for value in found.values if isinstance(value, dict)]
    best = objects or found.values  # a list beside an object is a footnote
    if len(best) > 1:
        raise NotJson("the answer holds several JSON values: write one alone")
    return best[0]


def _repaired(text: str) -> Any:
    end = text.rfind("}" if text[0] == "{" else "]") + 1
    if not end:
        raise NotJson("the JSON is cut off: it is never closed")
    if end > MAX_REPAIRED_CHARS:
        raise NotJson("the JSON is broken, and too long to be repaired")
    value = _by_library(text[:end])
    if not is_reading_of(value, text[:end]) or _LEFT_OVER.search(text[end:]):
        raise NotJson("the JSON is broken or cut off, and cannot be read in one way only")
    return value


def _by_library(text: str) -> Any:
    from json_repair import repair_json  # noqa: PLC0415  # most answers are valid

    try:
        value = repair_json(text, return_objects=True, skip_json_loads=True)
        return json.loads(json.dumps(value, allow_nan=False))  # joins halves of characters
    except Exception as error:  # noqa: BLE001  # whatever a library raises, the text cannot be repaired
        raise NotJson(f"the JSON is broken: {type(error).__name__}") from None


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
