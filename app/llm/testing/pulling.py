"""What Ollama says while it fetches a model, line by line: https://docs.ollama.com/api/pull and its server/images.go."""

import json
from collections.abc import Iterable
from typing import Any, Final

from app.llm.testing.content import End, Json, Wire
from app.llm.testing.gate import Gate

LAYERS: Final = (
    ("sha256:dde5aa3fc5ffc17176b5e8bdc82f587b24b2678c6c66101bf7da77af9f7ccdff", 2_019_377_376),
    ("sha256:966de95ca8a62200913e3f8bfbf84c8494536f1b94b49166851e76644e966396", 1_429),
)
"""Weights and template of a model: digest and bytes."""
UNKNOWN: Final = {"error": "pull model manifest: file does not exist"}

Line = Json | bytes | Gate
"""One line of a pull: what it says, exact bytes, or a gate at which it waits."""


def pull_lines(*, known: bool = True) -> tuple[Json, ...]:
    """Return what is said of a pull: one of a model that nobody has fails in the second line, with status 200."""
    if not known:
        return {"status": "pulling manifest"}, UNKNOWN
    return (
        {"status": "pulling manifest"},
        *(line for digest, size in LAYERS for line in _layer(digest, size)),
        {"status": "verifying sha256 digest"},
        {"status": "writing manifest"},
        {"status": "success"},
    )


def streamed(lines: Iterable[Line], end: End) -> Wire:
    """Return the lines as they travel, each in a chunk of its own."""
    chunks = tuple(line if isinstance(line, bytes | Gate) else _dumped(line) + b"\n" for line in lines)
    body = b"".join(chunk for chunk in chunks if isinstance(chunk, bytes))
    return Wire(body=body, chunks=chunks, end=end, content_type="application/x-ndjson")


def whole(lines: Iterable[Line]) -> Wire:
    """Return what is said at the end to whoever wants no stream."""
    last: Any = [line for line in lines if isinstance(line, dict)][-1]
    return Wire(body=_dumped(last), status=500 if "error" in last else 200)


def _layer(digest: str, size: int) -> tuple[Json, ...]:
    """Return the lines of one layer; until some of it has come, `completed` is left out."""
    said = {"status": f"pulling {digest.removeprefix('sha256:')[:12]}", "digest": digest, "total": size}
    return said, {**said, "completed": size // 2}, {**said, "completed": size}


def _dumped(value: Any) -> bytes:  # JSON
    return json.dumps(value).encode()
