"""How a run looks to a reader, and as JSON."""

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from app.cli.output import emit, emit_facts, emit_table, harmless

if TYPE_CHECKING:
    from app.llm.persistence.reports import Row, RunDetails

_FACTS = (
    *("status", "workspace_id", "pipeline_run_id", "stage", "idempotency_key", "profile", "finish_reason"),
    *("execution", "supersedes", "source_run_id", "replayed_count", "owner", "created_at", "lease_until"),
    *(
        "finished_at",
        "expires_at",
        "latency_ms",
        "queue_wait_ms",
        "sends_noted",
        "cost_usd",
        "saved_cost_usd",
    ),
    *(
        "price_version",
        "possibly_paid",
        "late",
        "cache_mode",
        "error_code",
        "error_message",
        "prompt_sha256",
        "candidate_sha256",
        "trace_id",
    ),
)
WIDEST_STATUS = len("SUCCEEDED")


def list_row(row: "Row") -> list[object]:
    """Return the cells of one run in a list."""
    return [
        row["id"],
        row["created_at"],
        row["workspace_id"],
        row["stage"],
        row["status"],
        candidate(row),
        source(row),
        tokens(row),
        rounded(row["latency_ms"]),
        row["idempotency_key"],
        row["error_code"],
    ]


def line(at: datetime, run: "Row") -> list[object]:
    """Return what a run says in one line, at a time; None is left out."""
    return [
        at,
        run["id"],
        f"{run['status']:<{WIDEST_STATUS}}",
        candidate(run),
        run["workspace_id"] + (f"/{run['stage']}" if run["stage"] else ""),
        source(run),
        _with(tokens(run), "tokens"),
        _with(rounded(run["latency_ms"]), "ms"),
        _with(dollars(run["cost_usd"]), "USD"),
        _with(run["idempotency_key"], "key", before=True),
        run["error_code"],
    ]


def run_document(details: "RunDetails") -> dict[str, Any]:
    """Return a run as JSON values: its columns, then what belongs to it."""
    return {
        **details.run,
        "attempts": [dict(row) for row in details.attempts],
        "executions": [dict(row) for row in details.executions],
        "hits": list(details.hits),
        "request": details.request,
        "response": details.response,
        "encrypted": details.encrypted,
    }


def emit_run(details: "RunDetails") -> None:
    """Write a run for a reader."""
    run = details.run
    facts = {name: _fact(run[name]) for name in _FACTS}
    facts["cost_usd"] = dollars(run["cost_usd"]) or ("unknown" if run["finished_at"] else None)
    emit_facts({"run": run["id"], "candidate": candidate(run), "tokens": tokens(run), **facts})
    emit_facts({"metadata": run["metadata"] or None, "hits": " ".join(details.hits) or None})
    emit_table(
        ("candidate", "verdict", "reason"),
        [(candidate(e), "kept" if e["kept"] else "excluded", _reason(e)) for e in run["route"]],
        title="Route",
    )
    if details.attempts:
        emit_table(
            (
                "send",
                "candidate",
                "status",
                "started (UTC)",
                "ms",
                "tokens",
                "cost USD",
                "http",
                "error",
                "possibly paid",
            ),
            map(_attempt_row, details.attempts),
            title="Attempts",
        )
    if len(details.executions) > 1:
        emit_table(
            ("run", "created (UTC)", "status", "execution", "supersedes", "error"),
            [
                (e["id"], e["created_at"], e["status"], e["execution"], e["supersedes"], e["error_code"])
                for e in details.executions
            ],
            title="Runs of this key",
        )
    absent = "(encrypted: set LLM_PAYLOAD_KEY to read it)" if details.encrypted else "(not stored)"
    _emit_text("Request", _asked(details.request), absent)
    _emit_text("Response", answered(details.response), absent)


def candidate(row: Mapping[str, Any]) -> str | None:
    """Return `provider:model`; None before there was one."""
    return f"{row['provider']}:{row['model']}" if row["provider"] else None


def tokens(row: Mapping[str, Any]) -> str | None:
    """Return input and output tokens; None while both are unknown."""
    counts = [row["input_tokens"], row["output_tokens"]]
    return None if counts == [None, None] else " + ".join("?" if n is None else str(n) for n in counts)


def source(row: Mapping[str, Any]) -> str | None:
    """Return where an answer came from, and how often it was replayed since; None without one."""
    if row["status"] != "SUCCEEDED":
        return None
    origin = "cache" if row["source_run_id"] else "live"
    return f"{origin} + {row['replayed_count']} replayed" if row["replayed_count"] else origin


def rounded(value: float | None) -> str | None:
    """Return whole milliseconds."""
    return None if value is None else f"{value:.0f}"


def dollars(cost_usd: Decimal | None) -> str | None:
    """Return all digits of a cost; None while it is unknown."""
    return None if cost_usd is None else f"{cost_usd.normalize():f}"


def answered(stored: Any) -> str | None:  # JSON
    """Return a stored answer as text; None if none is stored."""
    if stored is None:
        return None
    return json.dumps(stored["result"], ensure_ascii=False) if "result" in stored else said(stored["parts"])


def said(parts: list[dict[str, Any]]) -> str:
    """Return the parts of a message as text; what is no text is named in brackets."""
    return " ".join(map(_part, parts))


def _with(value: str | None, unit: str, *, before: bool = False) -> str | None:
    if value is None:
        return None
    return f"{unit} {value}" if before else f"{value} {unit}"


def _attempt_row(row: "Row") -> list[object]:
    spent_ms = (row["finished_at"] - row["started_at"]).total_seconds() * 1000
    return [
        row["ordinal"],
        candidate(row),
        row["status"],
        row["started_at"],
        rounded(spent_ms),
        tokens(row),
        dollars(row["cost_usd"]),
        row["http_status"],
        row["error_code"],
        "yes" if row["possibly_paid"] else None,
    ]


def _reason(entry: Mapping[str, Any]) -> str:
    detail = ", ".join(f"{name} {value}" for name, value in entry.get("detail", {}).items())
    return f"{entry['reason']} ({detail})" if detail else str(entry["reason"])


def _asked(stored: Any) -> str | None:  # JSON
    if stored is None:
        return None
    if "effect" in stored:
        return _part({"type": "tool_call", **stored["effect"]})
    turns = stored["request"]["messages"]
    return "\n".join(f"{turn['role']}: {said(turn['content'])}" for turn in turns)


def _part(part: dict[str, Any]) -> str:
    match part:
        case {"type": "text", "text": text}:
            shown = str(text)
        case {"type": "thinking", "text": text}:
            shown = f"[thinking: {text}]"
        case {"type": "tool_call", "name": name, "arguments": arguments}:
            shown = f"[calls {name}({arguments})]"
        case {"type": "tool_result", "name": name, "content": content}:
            shown = f"[result of {name}: {content}]"
        case _:
            shown = f"[{part.get('media_type') or part.get('type')}]"
    return shown


def _emit_text(title: str, text: str | None, absent: str) -> None:
    emit(f"\n{title}\n{harmless(text) if text is not None else absent}")


def _fact(value: object) -> object:
    if value is False or value == 0:
        return None
    if isinstance(value, Decimal):
        return dollars(value)
    return f"{value:.0f}" if isinstance(value, float) and value >= 1 else value
