"""How addresses, headers and keys are written in settings: parsed here, so that no room parses them twice."""

import base64
import re
from ipaddress import ip_address
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import SecretStr

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # a token of RFC 9110, section 5.6.2
_KEY = re.compile(r"[A-Za-z0-9+/]{43}=")  # 32 bytes: AES-256
NO_KEY = "is set and holds no key: give it one, or unset it to keep requests and answers as plain text"


def header_pairs(value: SecretStr | None) -> dict[str, str]:
    """Return `Name: value; Name: value` as a dict.

    Raises:
        ValueError: A pair has no colon, or holds a control character.
    """
    pairs: dict[str, str] = {}
    for item in value.get_secret_value().split(";") if value else ():
        name, colon, text = item.partition(":")
        if not item.strip():
            continue
        if not colon or not _HEADER_NAME.fullmatch(name.strip()) or not item.strip().isprintable():
            raise ValueError("headers are written as `Name: value; Other: value`")
        pairs[name.strip()] = text.strip()
    return pairs


def payload_keys(value: SecretStr | None) -> tuple[bytes, ...]:
    """Return the keys of `KEY,KEY`, each as 32 bytes; none if unset.

    Raises:
        ValueError: One is not base64 of 32 bytes, or there is none where there should be.
    """
    if value is not None and not items_of(value):
        raise ValueError(NO_KEY)
    if not all(_KEY.fullmatch(item) for item in items_of(value)):
        raise ValueError("each key is base64 of 32 bytes: `openssl rand -base64 32` makes one")
    return tuple(base64.b64decode(item) for item in items_of(value))


def items_of(value: SecretStr | None) -> tuple[str, ...]:
    """Return the parts of a comma-separated secret."""
    text = value.get_secret_value() if value else ""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def is_local_host(host: str, local_hosts: tuple[str, ...]) -> bool:
    """Return whether `host` is named as local, comparing addresses by value."""

    def same(a: str, b: str) -> bool:
        try:
            return ip_address(a.strip("[]")) == ip_address(b.strip("[]"))
        except ValueError:
            return a.lower() == b.lower()

    return any(same(host, named) for named in local_hosts)


def is_local_url(url: str, local_hosts: tuple[str, ...]) -> bool:
    """Return whether the host of `url` is named as local."""
    return is_local_host(urlsplit(url).hostname or "", local_hosts)


def has_good_port(parts: SplitResult) -> bool:
    """Return whether a URL names no port, or one that exists."""
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def passwords_of(url: str) -> set[str]:
    """Return every password that a database URL holds, as written and as meant."""
    parts = urlsplit(url)
    said = [value for name, value in parse_qsl(parts.query) if "pass" in name.lower()]
    return {*said, parts.password, unquote(parts.password)} if parts.password else set(said)
