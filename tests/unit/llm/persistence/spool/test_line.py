"""A spool line carries a settlement there and back, and one that no database would take is refused with the reason."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from app.llm.persistence.settlement import Settlement, of_failure, of_success
from app.llm.persistence.spool.line import from_line, to_line
from tests.support.ledger import attempt, failure, new_run, request, success

Body = dict[str, Any]


def _success() -> Settlement:
    run = new_run(request(idempotency_key="k1"))
    return of_success(run, success(run, "A box.", sends=2), owner="o", key_ttl_s=None, keep=True)


@pytest.mark.parametrize("how", ["success", "failure"])
def test_a_line_carries_a_settlement_there_and_back(how: str):
    run = new_run(request('quotes " and NUL \x00', idempotency_key="k1"))
    settled = (
        of_success(run, success(run, "\ud800\x00", sends=3), owner="o", key_ttl_s=9.0, keep=True)
        if how == "success"
        else of_failure(run, failure(sends=2), status="FAILED", owner="o", keep=True)
    )
    line = to_line(settled)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert from_line(line) == settled


def test_times_of_attempts_keep_their_zone():
    run = new_run(request())
    ended = success(run)
    moment = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
    ended.attempts[0] = attempt(started_at=moment)  # type: ignore[index]
    settled = of_success(run, ended, owner="o", key_ttl_s=None, keep=True)
    assert from_line(to_line(settled)).attempts[0]["started_at"] == moment


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not JSON"),
        (b"\n", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not an object"),
        (b"null", "not an object"),
        (b'{"v":1}', "not of version 2, which is what this program reads: rename"),
        (b'{"v":2}', "names"),
        (b'{"v":2,"run":{}}', "names"),
    ],
    ids=lambda value: str(value[:12]),
)
def test_a_line_that_is_none_of_ours_is_refused_with_the_reason(line: bytes, reason: str):
    with pytest.raises(ValueError, match=reason):
        from_line(line)


def _put(*path: str | int, value: Any) -> Callable[[Body], None]:
    def change(body: Body) -> None:
        place: Any = body
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


def _drop(*path: str | int) -> Callable[[Body], None]:
    def change(body: Body) -> None:
        place: Any = body
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_put("run", value={}), "run: not the columns"),
        (_put("run", value=[]), "run: not the columns"),
        (_put("run", value={"id": "x"}), "run: not the columns"),
        (_drop("run", "owner"), "run: not the columns"),
        (_put("run", "new", value=1), "run: not the columns"),
        (_put("key", value=7), "value of key"),
        (_put("workspace_id", value=None), "value of workspace_id"),
        (_put("request_sha256", value="x" * 65), "value of request_sha256"),
        (_put("run", "id", value=None), "value of id"),
        (_put("run", "model", value="secret\x00"), "value of model"),
        (_put("run", "model", value="\ud800"), "value of model"),
        (_put("run", "total_tokens", value=2**63), "value of total_tokens"),
        (_put("run", "total_tokens", value=-1), "value of total_tokens"),
        (_put("run", "total_tokens", value=True), "value of total_tokens"),
        (_put("run", "latency_ms", value="secret"), "value of latency_ms"),
        (_put("run", "possibly_paid", value=1), "value of possibly_paid"),
        (_put("run", "status", value="STARTED"), "status"),
        (_put("attempts", value={}), "attempts: not a list"),
        (_put("attempts", 0, value=None), "attempts: not the columns"),
        (_put("attempts", 0, "started_at", value="secret"), "value of started_at"),
        (_put("attempts", 0, "started_at", value="2026-01-01T00:00:00"), "value of started_at"),
        (_put("attempts", 0, "started_at", value="0001-01-01T00:00:00+14:00"), "value of started_at"),
        (_put("attempts", 0, "started_at", value=5), "value of started_at"),
        (_put("attempts", 0, "http_status", value=2**31), "value of http_status"),
        (_put("attempts", 0, "run_id", value="other"), "belongs to another run"),
        (_put("payloads", 0, "bytes", value="secret!"), "value of bytes"),
        (_put("payloads", 0, "bytes", value=None), "value of bytes"),
        (_put("payloads", 0, "codec", value=2**15), "value of codec"),
        (_put("payloads", 0, "workspace_id", value="other"), "belongs to another workspace"),
    ],
)
def test_a_value_that_no_database_would_take_is_refused_and_not_quoted(
    change: Callable[[Body], None], reason: str
):
    """I17."""
    body = json.loads(to_line(_success()))
    change(body)
    with pytest.raises(ValueError, match=reason) as caught:
        from_line(json.dumps(body).encode())
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
