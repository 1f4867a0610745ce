"""Find in a prompt what a field of an answer is likely to mean, so that a demo shows values that make sense."""

import re
import uuid
from collections.abc import Iterator
from datetime import date, timedelta
from functools import cached_property

_SEARCHED_CHARS = 20_000
_MAX_DIGITS = 15  # what a float holds exactly
_SYMBOLS = {"€": "EUR", "$": "USD", "£": "GBP", "¥": "JPY"}
_CODES = "EUR|USD|GBP|CHF|JPY|NOK|SEK|DKK|PLN|CZK|CAD|AUD|INR|CNY"
_PROPER = r"[A-ZÀ-Þ][\w&'-]*(?: +(?:& +)?[A-ZÀ-Þ][\w&'-]*)*"
_INSIDE = re.compile(rf"(?<=[^.!?:\s]\s){_PROPER}")
_NUMBER = re.compile(r"(?<![\w.,-])-?\d+(?:[.,]\d+)*(?![\w-]|[.,]\d)")
_DATE = re.compile(r"\b(\d{4}-\d{2}-\d{2})(?:[T ]((?:[01]\d|2[0-3]):[0-5]\d))?\b")
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]*\w")
_URL = re.compile(r"https?://[^\s\"'<>),]+")
_UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")
_FORMATS = {"email": _EMAIL, "uri": _URL, "uuid": _UUID}


def _any_of(names: str) -> frozenset[str]:
    return frozenset(names.split())


_MONEY = _any_of("total amount price cost sum balance value fee")
_CERTAINTY = _any_of("confidence probability score likelihood certainty")
_PROSE = _any_of("summary description text answer reason reasoning message notes note subject")
_PROSE |= _any_of("explanation body query question comment content")
_TYPED: tuple[tuple[frozenset[str], re.Pattern[str]], ...] = (
    (_any_of("currency"), re.compile(rf"\b(?:{_CODES})\b")),
    (_any_of("email mail"), _EMAIL),
    (_any_of("url uri link website"), _URL),
    (_any_of("date day due deadline"), re.compile(r"\b\d{4}-\d{2}-\d{2}\b")),
    (
        _any_of("vendor supplier seller sender merchant company source origin issuer shop"),
        re.compile(rf"\b(?i:from|by) (?:the )?({_PROPER})"),
    ),
    (
        _any_of("recipient customer buyer receiver client destination target"),
        re.compile(rf"\b(?i:to|for) (?:the )?({_PROPER})"),
    ),
    (
        _any_of("city place location town country region"),
        re.compile(rf"\b(?i:in|for|at) (?:the )?({_PROPER})"),
    ),
    (
        _any_of("item product article description goods"),
        re.compile(r"(?<![\w.,-])\d{1,4} (?:x )?([a-z]{3,}(?: [a-z]{4,})?)"),
    ),
    *(
        (_any_of(word), re.compile(rf"(?i)\b{word}\.? (?:no\.? |number )?#?([\w/-]*\d[\w/-]*)"))
        for word in ("invoice", "order", "ticket", "reference", "number")
    ),
    (
        _any_of("id number reference invoice order ticket code no ref"),
        re.compile(r"\b(?=[\w/-]*\d)[A-Za-z][\w/-]*\b|(?<=#)\d+"),
    ),
)


class Prompt:
    """The last text of a user, searched for values."""

    def __init__(self, text: str) -> None:
        self._text = text[:_SEARCHED_CHARS]

    def opening(self, words: int) -> str:
        """Return the first words, without the mark that ends the sentence; `nothing` for an empty text."""
        return " ".join(self._text.split()[:words]).rstrip(".!?:;, ") or "nothing"

    def strings(self, name: str) -> Iterator[str]:
        """Yield texts for a property called `name`, the likeliest first; never empty, not without end."""
        parts = name_parts(name)
        yield from self._labelled(name)
        yield from self._typed(parts)
        if parts & _PROSE:
            yield self.opening(12)
        yield from self._proper
        yield from self._words
        yield self.opening(6)
        yield name or "value"

    def numbers(self, name: str) -> Iterator[float]:
        """Yield numbers for a property called `name`, the likeliest first; perhaps none."""
        parts = name_parts(name)
        if parts & _CERTAINTY:
            yield 0.9
        for text in self._labelled(name):
            yield from (_number(found) for found in _NUMBER.findall(text))
        if parts & _MONEY:
            yield from reversed([number for number in self._numbers if number % 1])
            yield from reversed(self._numbers)
        if "year" in parts:
            yield from (float(day[:4]) for day, _ in self._dates)
        yield from self._numbers

    def formatted(self, kind: str, place: int = 0) -> str | None:
        """Return a text valid for a JSON-schema format, the first one from the prompt if it holds one."""
        if kind in _FORMATS and len(found := _FORMATS[kind].findall(self._text)) > place:
            return str(found[place])
        first, hour = self._dates[0] if self._dates else ("2026-01-15", "")
        day = date.fromisoformat(first) + timedelta(days=place)
        clock = f"{hour or '09:00'}:{place % 60:02}Z"
        known = {
            "date": str(day),
            "time": clock,
            "date-time": f"{day}T{clock}",
            "duration": f"P{place + 1}D",
            "email": f"stub{place or ''}@example.com",
            "uri": f"https://example.com/{place or ''}",
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{place} {self._text}")),
            "ipv4": f"127.0.0.{place % 250 + 1}",
            "ipv6": f"::{place + 1:x}",
            "hostname": f"host{place}.example.com",
        }
        return known.get(kind)

    def mentions(self, value: object) -> bool:
        """Tell whether `value` stands in the text as a word of its own, in any case."""
        return bool(re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", self._text, re.IGNORECASE))

    def _labelled(self, name: str) -> Iterator[str]:
        """What follows `name:`, `name =` or `name is`."""
        words = r"[\s_-]*".join(re.escape(word) for word in _split(name))
        if words:
            label = rf"(?i)(?<!\w){words}(?:\s*[:=]\s*|\s+is\s+)"
            value = r"([^\n;]+?)(?=,\s|\.\s|[;\n]|\.?$|\s\w+:)"
            yield from (found.strip(" \"'") for found in re.findall(label + value, self._text))

    def _typed(self, parts: set[str]) -> Iterator[str]:
        """What has the form that names like these usually hold."""
        for names, pattern in _TYPED:
            if parts & names:
                yield from pattern.findall(self._text)
        if "currency" in parts:
            yield from (code for sign, code in _SYMBOLS.items() if sign in self._text)

    @cached_property
    def _dates(self) -> list[tuple[str, str]]:
        return [(day, hour) for day, hour in _DATE.findall(self._text) if _is_date(day)]

    @cached_property
    def _numbers(self) -> list[float]:
        return [_number(found) for found in _NUMBER.findall(_DATE.sub(" ", self._text))]

    @cached_property
    def _proper(self) -> list[str]:
        """Capitalised words that do not merely open a sentence."""
        return [found for found in _INSIDE.findall(self._text) if not re.fullmatch(_CODES, found)]

    @cached_property
    def _words(self) -> list[str]:
        return list(dict.fromkeys(re.findall(r"[^\W\d_]{4,}", self._text)))


def name_parts(name: str) -> set[str]:
    """Return the lower-case words of a property name, whatever its style (`dueDate`, `due_date`)."""
    return set(_split(name))


def _split(name: str) -> list[str]:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ").replace("-", " ").lower().split()


def _number(text: str) -> float:
    """Read 1234.5, 1,234.50, 1.234,50 and 42,50; of anything else (1.2.3) the first part."""
    if re.fullmatch(r"-?\d{1,3}(?:\.\d{3})*,\d{1,2}", text):
        text = text.replace(".", "").replace(",", ".")
    text = text.replace(",", "")
    whole, *decimals = text.split(".")
    return float(f"{whole[:_MAX_DIGITS]}.{decimals[0]}" if len(decimals) == 1 else whole[:_MAX_DIGITS])


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
