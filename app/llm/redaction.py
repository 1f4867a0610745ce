"""Takes secrets and personal data out of text before it reaches a log line or a row."""

import json
import re
from collections.abc import Callable, Iterable
from urllib.parse import quote

REDACTED = "[redacted]"
MIN_SECRET_CHARS = 4  # replacing shorter ones would blank ordinary words

# Each look-behind keeps a search from starting again inside what it has just read: without it they are quadratic.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {REDACTED}"),
    (
        re.compile(
            r"(?i)((?:api[-_]?key|x-goog-api-key|authorization|password|secret|token)[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&}]{4,}"
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"(?i)([?&]key=)[^\s&\"']+"), rf"\1{REDACTED}"),
    (re.compile(r"\bAIza[0-9A-Za-z_-]{20,}"), REDACTED),
    (re.compile(r"\b(?:sk|pk|rk|gsk|xox[abp]|ghp|gho|glpat)[-_][0-9A-Za-z_-]{12,}"), REDACTED),
    (re.compile(r"(://[^\s/:@]+:)[^\s/@]+@"), rf"\1{REDACTED}@"),
    (re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), REDACTED),
    (re.compile(r"(?<![\w-])(?<!\d[ -])\d(?:[ -]?\d){11,}(?![\w-])"), REDACTED),
)


class Redactor:
    """Replaces keys, bearer tokens, e-mail addresses and runs of twelve or more digits.

    `secrets` are exact values (the configured keys) that must never show; `more` are further rules of the host
    application, each a function from text to text, applied last.
    """

    def __init__(self, *, secrets: Iterable[str] = (), more: Iterable[Callable[[str], str]] = ()) -> None:
        spelled = {
            each for secret in secrets if len(secret) >= MIN_SECRET_CHARS for each in _spellings(secret)
        }
        self._secrets = tuple(sorted(spelled, key=len, reverse=True))
        self._more = tuple(more)

    def __call__(self, text: str) -> str:
        """Return `text` without what must not be kept."""
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        for rule in self._more:
            text = rule(text)
        return text


def _spellings(secret: str) -> set[str]:
    """Return how a secret looks in text, in a URL and in JSON."""
    return {secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}
