"""Where a request differs from the one that a key belongs to, so that whoever broke a repetition can find the line."""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import zip_longest

from pydantic import JsonValue

from app.llm.errors import LLMKeyConflict, LLMLedgerError
from app.llm.fingerprint import canonical
from app.llm.ports import Effect, LLMRunRepo
from app.llm.types import LLMRequest

SHOWN_CHARS = 300
"""Of the arguments of an effect, in an error's text."""

_NOTHING = object()


async def told_apart(
    repo: LLMRunRepo,
    conflict: LLMKeyConflict,
    asked: LLMRequest | Effect,
    *,
    workspace_id: str,
    redact: Callable[[str], str],
) -> LLMKeyConflict:
    """Return the conflict with what differs (`path`), where the ledger still has what its run was asked.

    Of requests only the place is told; of effects both are shown, redacted and shortened.
    """
    run_id, stored = conflict.run_id, None
    if run_id is not None:
        with suppress(LLMLedgerError):  # then there is less to tell
            stored = await repo.asked(workspace_id, run_id)
    if isinstance(asked, Effect) and isinstance(stored, Effect):
        path = first_difference(_of_effect(stored), _of_effect(asked))
        both = " and not ".join(_shown(each, redact) for each in (stored, asked))
        said = f"this key belongs to run {run_id}, which did {both} (they differ first at {path}): "
    elif isinstance(asked, LLMRequest) and isinstance(stored, LLMRequest):
        path = first_difference(canonical(stored), canonical(asked))
        said = f"this key belongs to run {run_id} of another request, which differs first at {path}: "
    else:
        return conflict
    if path is None:  # its answer is what does not fit
        return conflict
    return LLMKeyConflict(
        said
        + "use another key for another request; what is to be repeated must not hold a clock or random text",
        **{**conflict.facts, "path": path},
    )


def first_difference(one: JsonValue, other: JsonValue, path: str = "$") -> str | None:
    """Return the JSON path of the first value that is not the same in both; None if they are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = dict.fromkeys((*one, *other))
        pairs: Iterable[tuple[str, object, object]] = (
            (_member(name), one.get(name, _NOTHING), other.get(name, _NOTHING)) for name in names
        )
    elif isinstance(one, list) and isinstance(other, list):
        both = zip_longest(one, other, fillvalue=_NOTHING)
        pairs = ((f"[{place}]", first, second) for place, (first, second) in enumerate(both))
    else:
        return None if one == other and isinstance(one, bool) == isinstance(other, bool) else path
    inside = (first_difference(first, second, path + step) for step, first, second in pairs)  # type: ignore[arg-type]  # what is missing equals nothing
    return next((found for found in inside if found is not None), None)


def _member(name: str) -> str:
    return f".{name}" if name.isidentifier() else f"[{json.dumps(name)}]"


def _of_effect(effect: Effect) -> JsonValue:
    return {"name": effect.name, "arguments": dict(effect.arguments)}


def _shown(effect: Effect, redact: Callable[[str], str]) -> str:
    text = redact(json.dumps(effect.arguments, ensure_ascii=False))
    return f"{effect.name}({text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + '...'})"
