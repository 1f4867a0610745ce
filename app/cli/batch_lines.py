"""The lines of a batch, each a request with a key of its own, so that a batch that starts again pays for no line twice."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, BinaryIO

import orjson
from pydantic import ValidationError

from app.cli.faults import UsageFault
from app.llm.context import resolve_context
from app.llm.errors import LLMError
from app.llm.types import LLMRequest

BAD_LINES_NAMED = 5
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What the command line says for lines that do not say it; no line can lift `local_only`."""

    fields: Mapping[str, Any]
    system: str | None = None
    local_only: bool = False
    workspace: str | None = None
    """Of lines that no other source gives one."""

    def digest(self) -> bytes:
        """Return what the answers depend on and whose they are, hashed into every key."""
        free = {name: value for name, value in self.fields.items() if name not in {"cache", "timeout_s"}}
        said = [free, self.system, self.local_only, self.workspace]
        return orjson.dumps(said, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line that can be sent."""

    number: int
    """1 for the first line of the file, blank ones counted."""
    id: str | int | None
    request: LLMRequest
    """With its key."""
    digest: str
    """Of the options and of every line up to this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """One line that cannot."""

    number: int
    fault: str


@dataclass(slots=True)
class _Seen:
    """Names that belong to one line each, with its number."""

    names: dict[tuple[object, ...], int] = field(default_factory=dict)

    def check(self, number: int, *name: object) -> None:
        first = self.names.setdefault(name, number)
        if first != number:
            raise ValueError(f"{name[0]} {name[-1]!r} is that of line {first}")


def lines_of(file: BinaryIO, defaults: Defaults) -> Iterator[Line | BadLine]:
    """Yield the lines of a file, read as they are asked for; blank ones are passed over.

    The key of a line without one is made of the options, every line up to it, and its number: lines that are added at
    the end of a file leave the keys of the others as they are.
    """
    digest, seen = sha256(defaults.digest()), _Seen()
    for number, raw in enumerate(file, 1):
        text = raw.removeprefix(_BOM if number == 1 else b"").strip()
        if not text:
            continue
        digest.update(text + b"\n")
        try:
            yield _line(number, text, digest.hexdigest()[:32], defaults, seen)
        except ValidationError as error:
            yield BadLine(number=number, fault=_fault(error))
        except LLMError as error:
            yield BadLine(number=number, fault=error.message)
        except ValueError as error:
            yield BadLine(number=number, fault=str(error))


def checked(file: BinaryIO, name: str, defaults: Defaults, answered: Mapping[int, str]) -> int:
    """Return how many lines a file has.

    Args:
        file: Read to its end.
        name: What the file is called.
        defaults: What the command line says.
        answered: Digests of the lines that have their answer, by number.

    Raises:
        UsageFault: A line cannot be sent, or the answers that are there belong to other lines.
    """
    count, bad, unmet = 0, list[BadLine](), set(answered)
    for line in lines_of(file, defaults):
        count += 1
        if isinstance(line, BadLine):
            bad.append(line)
        elif answered.get(line.number) == line.digest:
            unmet.discard(line.number)
    if bad:
        told = "; ".join(f"line {each.number}: {each.fault}" for each in bad[:BAD_LINES_NAMED])
        more = f"; and {len(bad) - BAD_LINES_NAMED} more" if len(bad) > BAD_LINES_NAMED else ""
        raise UsageFault(f"{name}: {told}{more}; nothing was sent")
    if unmet:
        raise UsageFault(
            f"line {min(unmet)} was another one when its answer was written: {name} or the options have changed. "
            "Name another output"
        )
    return count


def _line(number: int, text: bytes, digest: str, defaults: Defaults, seen: _Seen) -> Line:
    document = orjson.loads(text)
    if not isinstance(document, dict):
        raise ValueError("a line is a JSON object")  # noqa: TRY004  # of the file, not of a program
    name = document.pop("id", None)
    if not (name is None or isinstance(name, str) or type(name) is int):
        raise ValueError("id must be a text or a whole number")
    request = LLMRequest.model_validate_json(orjson.dumps(_spelled_out(document, defaults)))
    context = resolve_context(request, None, default_workspace=defaults.workspace)
    if name is not None:
        seen.check(number, "id", name)
    if context.idempotency_key is not None:
        seen.check(number, "idempotency_key", context.workspace_id, context.idempotency_key)
    key = context.idempotency_key or f"batch/{digest}/{number}"
    request = request.model_copy(update={"idempotency_key": key})
    return Line(number=number, id=name, request=request, digest=digest)


def _spelled_out(document: dict[str, Any], defaults: Defaults) -> dict[str, Any]:
    """Return the JSON of the request that a line stands for."""
    if ("prompt" in document) == ("messages" in document):
        raise ValueError("a line has either prompt or messages")
    if "prompt" in document:
        prompt, system = document.pop("prompt"), document.pop("system", defaults.system)
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError("prompt must be a text that says something")
        turns = [("system", system)] if system else []
        document["messages"] = [{"role": role, "content": text} for role, text in [*turns, ("user", prompt)]]
    if defaults.local_only and isinstance(limits := document.get("constraints") or {}, dict):
        document["constraints"] = {**limits, "local_only": True}
    return {**defaults.fields, **document}


def _fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    said = first["msg"].removeprefix("Value error, ")
    return f"{where}: {said}" if where else said
