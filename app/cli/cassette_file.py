"""What `cassette` does once its options are read; loaded by it alone, because that takes time."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.bootstrap import payload_codec
from app.cli.exporting import check_place
from app.cli.faults import NotFound, UsageFault
from app.cli.ledger import existing
from app.llm.candidates import Candidate, RouteReason
from app.llm.cassettes.lines import Asked, Interaction, Outcome, Redact, kept, kinds
from app.llm.cassettes.tapes import read, write
from app.llm.deltas import Parts
from app.llm.errors import LLMInvalidOutput
from app.llm.persistence import reports
from app.llm.persistence.codec import decode_request, decode_response, to_json
from app.llm.persistence.reports import Row, RunDetails, RunFilter
from app.llm.ports import TOOL, ProviderReply
from app.llm.providers import Catalog
from app.llm.redaction import Redactor
from app.llm.settings import load_settings
from app.llm.structured.judge import Judge
from app.llm.types import FinishReason, LLMRequest, ServedFrom, TokenUsage

COLUMNS = ("line", "candidate", "asked", "answer")
SHOWN_CHARS = 60
NOT_STORED = "the texts are not stored: LLM_STORE_PAYLOADS was hash, or they were pruned"
ENCRYPTED = "the texts are encrypted: set LLM_PAYLOAD_KEY"
CHECKED = "an answer was refused by a check, and is not stored"
UNDER_WAY = "the sends are not known: it has not ended, or was abandoned"


class _LeftOut(Exception):
    """A run that no cassette can tell; the text says why."""


@dataclass(slots=True, kw_only=True)
class Exported:
    """What was written."""

    lines: list[str] = field(default_factory=list)
    runs: int = 0
    """Those with a call at least."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Ids of runs by the reason."""
    without_key: set[str] = field(default_factory=set)
    """Providers that were passed over for want of a key."""

    @property
    def calls(self) -> int:
        """Lines of the cassette."""
        return len(self.lines)


async def exported(file: Path, wanted: RunFilter, *, limit: int) -> Exported:
    """Write the sends of the runs that fit, oldest first.

    Raises:
        UsageFault: More runs than `limit` fit, or `file` is no place for a file.
        NotFound: There is no send that could be written.
    """
    settings = load_settings()
    check_place(file)
    redact, catalog, done = Redactor(secrets=settings.secrets()), Catalog.from_settings(settings), Exported()
    async with existing(settings) as executor:
        rows = await reports.list_runs(executor, wanted, limit=limit + 1)
        if len(rows) > limit:
            raise UsageFault(f"more than {limit} runs fit: say which, or raise --limit")
        for row in reversed(rows):
            details = await reports.run_details(executor, row["id"], payload_codec(settings))
            if details is not None:
                _add(done, details, catalog, redact)
    if not done.lines:
        raise NotFound(f"there is no call to export{_because(done)}")
    write(file, done.lines, done.without_key)
    return done


def documents(file: Path) -> list[Any]:
    """Return the lines of a cassette as JSON values."""
    return [json.loads(each.line()) for each in read(file).values()]


def rows(file: Path) -> Iterator[tuple[object, ...]]:
    """Yield the cells of each call of a cassette."""
    for line, each in read(file).items():
        yield line, each.asked.candidate, _short(_last_words(each.asked.content)), _short(_said(each.outcome))


def _add(done: Exported, details: RunDetails, catalog: Catalog, redact: Redact) -> None:
    run = details.run
    if run["profile"] == TOOL or (run["source_run_id"] is not None and not details.attempts):
        return
    try:
        lines = [each.line() for each in _interactions(details, catalog, redact)]
    except _LeftOut as why:
        done.left_out.setdefault(str(why), []).append(run["id"])
        return
    done.lines += lines
    done.without_key |= {
        each["provider"] for each in details.run["route"] if each["reason"] == RouteReason.NO_CREDENTIALS
    }
    done.runs += bool(lines)


def _interactions(details: RunDetails, catalog: Catalog, redact: Redact) -> Iterator[Interaction]:
    """Yield the sends of a run.

    Raises:
        _LeftOut: One of them is not known.
    """
    if details.run["finished_at"] is None:
        raise _LeftOut(UNDER_WAY)
    if not details.attempts:
        return
    if any(attempt["error_code"] == LLMInvalidOutput.code for attempt in details.attempts):
        raise _LeftOut(CHECKED)
    if details.request is None:
        raise _LeftOut(ENCRYPTED if details.encrypted else NOT_STORED)
    request = decode_request(to_json(details.request).encode())
    if not isinstance(request, LLMRequest):
        raise _LeftOut(NOT_STORED)
    last = details.attempts[-1]
    for attempt in details.attempts:
        candidate = catalog.pinned(f"{attempt['provider']}:{attempt['model']}")
        question = Judge().question(request, candidate)
        outcome, partial = _outcome(details, attempt, candidate, last=attempt is last)
        yield kept(Asked.of(question, candidate, redact), outcome, partial, redact)


def _outcome(details: RunDetails, attempt: Row, candidate: Candidate, *, last: bool) -> tuple[Outcome, Parts]:
    if attempt["status"] == "SUCCEEDED":
        return _reply(details, attempt), ()
    partial = _partial(details) if last else ()
    if attempt["status"] == "CANCELLED":
        return None, partial
    code, run = attempt["error_code"], details.run
    told = run["error_message"] if last and run["error_code"] == code else None
    status = attempt["http_status"]
    error = kinds()[code](
        told
        or f"{candidate.name} failed with {code}{f' ({status})' if status else ''}; its words are not kept",
        provider=candidate.provider,
        model=candidate.model,
        http_status=status,
        retry_after_s=attempt["retry_after_s"],
        usage=_counts(attempt),
        possibly_paid=attempt["possibly_paid"],
    )
    return error, partial


def _reply(details: RunDetails, attempt: Row) -> ProviderReply:
    if details.response is None:
        raise _LeftOut(ENCRYPTED if details.encrypted else NOT_STORED)
    stored = decode_response(
        to_json(details.response).encode(), run_id=details.run["id"], route=(), served_from=ServedFrom.LIVE
    )
    return ProviderReply(
        parts=stored.parts,
        finish_reason=stored.finish_reason,
        usage=stored.original_usage,
        http_status=attempt["http_status"],
    )


def _partial(details: RunDetails) -> Parts:
    """Return what had arrived of the last send of a run without an answer."""
    if details.response is None or details.response.get("finish_reason") is not None:
        return ()
    whole = {**details.response, "finish_reason": FinishReason.STOP.value}
    stored = decode_response(
        to_json(whole).encode(), run_id=details.run["id"], route=(), served_from=ServedFrom.LIVE
    )
    return stored.parts


def _counts(attempt: Row) -> TokenUsage | None:
    names = ("input_tokens", "output_tokens", "cached_input_tokens")
    counts = {name: attempt[name] for name in names if attempt[name] is not None}
    return TokenUsage(**counts) if counts else None


def _because(done: Exported) -> str:
    why = next(iter(done.left_out.items()), None)
    return (
        ""
        if why is None
        else f": of {sum(map(len, done.left_out.values()))} runs, such as {why[1][0]}, {why[0]}"
    )


def _last_words(content: Mapping[str, Any]) -> str:
    messages = content.get("messages") or [{"content": []}]
    return " ".join(_of_part(part) for part in messages[-1]["content"])


def _of_part(part: Mapping[str, Any]) -> str:
    return str(part.get("text") or part.get("content") or f"[{part.get('media_type') or part.get('name')}]")


def _said(outcome: Outcome) -> str:
    if outcome is None:
        return "(cancelled)"
    if not isinstance(outcome, ProviderReply):
        return f"({outcome.code}) {outcome.message}"
    words = (_of_part(part.model_dump(mode="json")) for part in outcome.parts)
    return " ".join(words)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else f"{line[:SHOWN_CHARS]}..."
