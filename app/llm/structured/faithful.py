"""Whether a value is a reading of a broken text: the same words in the same brackets, nothing added, nothing left out.

Of the notation only commas, colons, quotes, comments, escapes and Python's words for constants may differ. Pure.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_COMMENT = r"//[^\n]*|/\*.*?\*/|\#[^\n]*"
_BETWEEN = re.compile(rf"(?:[\s,]|{_COMMENT})*", re.DOTALL)
_COLON = re.compile(rf"(?:\s|{_COMMENT})*:[\s:]*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.%/-])")
_UNQUOTED = re.compile(r"[^\W\d][\w .@/-]*")
"""A word, or several, that could not be anything else."""
_NO_STRINGS = frozenset({"nan", "inf", "infinity", "undefined", "none", "null", "nil", "true", "false"})
"""Words that mean something else where they are not quoted."""
_CLOSING = {
    '"': '"',
    "'": "'",
    "`": "`",
    "\u201c": "\u201d",
    "\u201d": "\u201d",
    "\u2018": "\u2019",
    "\u2019": "\u2019",
}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "/": "/", "'": "'", '"': '"'}
_ESCAPING = frozenset('"\\/bfnrtuxUN01234567')
"""Characters before which a backslash does not stand for itself, in JSON or in Python."""
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_AT_THE_EDGE_OF_A_STRING = frozenset(",:{}[]+")
_WORDS = {
    True: re.compile(r"(?:true|True|TRUE)\b"),
    False: re.compile(r"(?:false|False|FALSE)\b"),
    None: re.compile(r"(?:null|None|NULL)\b"),
}


class _Bracket(NamedTuple):
    sign: str


class _Key(NamedTuple):
    name: str


def is_reading_of(value: Any, text: str) -> bool:
    """Return whether `text` says `value` and nothing else."""
    at = 0
    for token in _tokens(value):
        found = _after(token, text, _between(text, at))
        if found is None:
            return False
        at = found
    return _between(text, at) == len(text)


def _tokens(value: Any) -> Iterator[Any]:
    """Yield brackets, keys and leaves in the order in which they are written."""
    if isinstance(value, dict):
        yield _Bracket("{")
        for key, held in value.items():
            yield _Key(key)
            yield from _tokens(held)
        yield _Bracket("}")
    elif isinstance(value, list):
        yield _Bracket("[")
        for held in value:
            yield from _tokens(held)
        yield _Bracket("]")
    else:
        yield value


def _between(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    return found.end() if found else at


def _after(token: Any, text: str, at: int) -> int | None:
    """Return where a token ends that begins at `at`; None if it does not stand there."""
    if isinstance(token, _Bracket):
        return at + 1 if text.startswith(token.sign, at) else None
    if isinstance(token, _Key):
        end = _after_string(token.name, text, at)
        colon = None if end is None else _COLON.match(text, end)
        return colon.end() if colon else None
    if isinstance(token, str):
        return _after_string(token, text, at)
    return _after_word(token, text, at)


def _after_word(value: float | bool | None, text: str, at: int) -> int | None:  # noqa: FBT001  # a JSON value
    if value is None or isinstance(value, bool):
        word = _WORDS[value].match(text, at)
        return word.end() if word else None
    number = _NUMBER.match(text, at)
    return number.end() if number and _is_number(number[0], value) else None


def _is_number(digits: str, value: float) -> bool:
    return int(digits) == value if digits.lstrip("+-").isdigit() else float(digits) == value


def _after_string(value: str, text: str, at: int) -> int | None:
    quote = text[at : at + 1]
    if quote not in _CLOSING:
        plain = _UNQUOTED.fullmatch(value) and value.lower() not in _NO_STRINGS and text.startswith(value, at)
        return at + len(value) if plain else None
    end = at + 1
    for char in value:
        found = _after_char(char, text, end, quote)
        if found is None:
            return None
        end = found
    return end + 1 if text[end : end + 1] == _CLOSING[quote] else None


def _after_char(char: str, text: str, at: int, quote: str) -> int | None:
    """Return where one character of a quoted string ends, as it is or escaped."""
    if text.startswith("\\", at) and (found := _after_escape(char, text, at + 1)) is not None:
        return found
    if not text.startswith(char, at) or (char == "\\" and text[at + 1 : at + 2] in _ESCAPING):
        return None
    bare_quote = char == _CLOSING[quote]
    return None if bare_quote and _may_end_a_string(text, at) else at + 1


def _after_escape(char: str, text: str, at: int) -> int | None:
    sign = text[at : at + 1]
    if sign == "u":
        return _after_code(char, text, at + 1)
    return at + 1 if sign and (sign == char == "\\" or _ESCAPES.get(sign) == char) else None


def _after_code(char: str, text: str, at: int) -> int | None:
    """Return where a character ends that is written by its code, or as two halves of a pair."""
    units = char.encode("utf-16-be", "surrogatepass")
    for place in range(0, len(units), 2):
        start = at + 3 * place  # four digits, and the next `\u`
        code = _HEX.match(text, start)
        if code is None or int(code[0], 16) != int.from_bytes(units[place : place + 2]):
            return None
        if place and text[start - 2 : start] != "\\u":
            return None
    return at + 3 * len(units) - 2


def _may_end_a_string(text: str, at: int) -> bool:
    """Return whether a quote within a string stands where strings begin or end, so that it may be no part of it."""
    before, after = text[:at].rstrip()[-1:], text[at + 1 :].lstrip()[:1]
    return before in _AT_THE_EDGE_OF_A_STRING or after in _AT_THE_EDGE_OF_A_STRING
