"""What waits in a spool: it outlives its service, hinders nobody longer than it must, and is never thrown away."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.llm.candidates import Candidate
from app.llm.errors import LLMLedgerBusy, LLMLedgerError
from app.llm.persistence.models import LLMRun
from app.llm.persistence.settlement import of_success
from app.llm.persistence.spool.line import from_line, to_line
from app.llm.persistence.spool.pending import Spool
from app.llm.testing.client import ScriptedClient
from app.llm.types import LLMRequest, LLMResponse, ServedFrom
from tests.support.ledger import Outside, new_run, request, success
from tests.support.service import Watched, rig, service

pytestmark = pytest.mark.crash
KEYED = request(idempotency_key="k1")
CROWD = 20


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


def _files(folder: Path, suffix: str = ".spool") -> list[Path]:
    return sorted(folder.rglob(f"*{suffix}"))


def _told(caplog: Any, event: str) -> list[dict[str, Any]]:
    said = [json.loads(record.message) for record in caplog.records if record.message.startswith("{")]
    return [each for each in said if each["event"] == event]


async def _leave_an_answer(db_url: str) -> LLMResponse:
    """Close a service while its database is away and a paid answer waits."""
    async with rig(db_url) as rigged:
        rigged.ledger.away_for = {"finish"}
        answer = await rigged.llm.chat(KEYED)
        assert not answer.persisted
    return answer


async def _turns() -> None:
    """Let everybody who can go on go on."""
    for _ in range(50):
        await asyncio.sleep(0)


# -- it outlives its service


async def test_an_answer_that_a_closed_service_left_is_replayed_by_the_next_one_in_the_process(
    db_url: str, outside: Outside, tmp_path: Path
):
    """I5, I7: a process may run one service after another, as a job that calls `asyncio.run` each time does."""
    answer = await _leave_an_answer(db_url)
    assert len(_files(tmp_path)) == 1
    async with service(db_url, client := ScriptedClient()) as llm:
        again = await llm.chat(KEYED)
    assert (again.text, again.run_id, again.served_from) == (answer.text, answer.run_id, ServedFrom.REPLAY)
    assert (client.sends, _files(tmp_path)) == (0, [])
    assert [row["status"] for row in await outside.runs()] == ["SUCCEEDED"]


async def test_a_start_that_fails_leaves_the_answers_to_the_next_one(db_url: str, tmp_path: Path):
    """I5: the lines that it took over, and the lock on them."""
    await _leave_an_answer(db_url)
    async with rig(db_url, opened=False) as rigged:
        rigged.ledger.away = True
        with pytest.raises(LLMLedgerError):
            await rigged.repo.open()
        async with service(db_url, client := ScriptedClient()) as llm:
            assert (await llm.chat(KEYED)).served_from is ServedFrom.REPLAY
    assert (client.sends, _files(tmp_path)) == (0, [])


# -- it hinders nobody longer than it must


async def test_all_who_wait_for_the_spool_wait_for_one_drain_and_fail_together(db_url: str):
    async with rig(db_url) as rigged:
        ledger = rigged.ledger
        ledger.away_for = {"finish"}
        await rigged.llm.chat(KEYED)
        ledger.seen.clear()
        ledger.gates["finish"] = asyncio.Event()
        crowd = [asyncio.create_task(rigged.llm.chat(request())) for _ in range(CROWD)]
        await _turns()
        for call in crowd[::2]:
            call.cancel()
        await _turns()
        ledger.gates["finish"].set()
        outcomes = await asyncio.gather(*crowd, return_exceptions=True)
        await rigged.llm.drain()
        assert {type(outcome) for outcome in outcomes[::2]} == {asyncio.CancelledError}
        assert all(isinstance(outcome, LLMLedgerError) for outcome in outcomes[1::2])
        assert ledger.seen == ["finish"]
        assert rigged.client.sends == 1


async def test_nobody_waits_for_the_spool_beyond_his_own_deadline(db_url: str):
    async with rig(db_url) as rigged:
        ledger = rigged.ledger
        ledger.away_for = {"finish"}
        await rigged.llm.chat(KEYED)
        ledger.away_for, ledger.gates["finish"] = set(), asyncio.Event()
        with pytest.raises(LLMLedgerBusy, match="within this call's time; nothing was sent"):
            await rigged.llm.chat(request(timeout_s=0.05))
        patient = asyncio.create_task(rigged.llm.chat(request()))
        ledger.gates["finish"].set()
        assert (await patient).persisted
        assert rigged.client.sends == 2


async def test_a_paid_answer_reaches_the_spool_while_the_spool_is_being_drained(db_url: str):
    """Its caller has it within the finish budget, however long the database takes for what came before."""
    replies = {"k1": asyncio.Event(), "k2": asyncio.Event()}

    async def reply(asked: LLMRequest, _: Candidate) -> None:
        if asked.idempotency_key in replies:
            await replies[asked.idempotency_key].wait()

    async with rig(db_url, Watched(reply), finish_budget_s=0.05) as rigged:
        first, second = (
            asyncio.create_task(rigged.llm.chat(request(idempotency_key=key))) for key in ("k1", "k2")
        )
        while rigged.client.sends < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        rigged.ledger.gates["finish"] = asyncio.Event()
        replies["k1"].set()
        assert not (await first).persisted
        third = asyncio.create_task(rigged.llm.chat(request()))
        await _turns()
        assert rigged.repo._spooling._draining is not None
        replies["k2"].set()
        assert not (await second).persisted
        (spool,) = _files(rigged.spool)
        assert [from_line(line).key for line in spool.read_bytes().splitlines(keepends=True)] == ["k1", "k2"]
        assert not third.done()
        rigged.ledger.gates["finish"].set()
        assert (await third).persisted
        assert _files(rigged.spool) == []


# -- it is never thrown away


async def test_an_answer_whose_row_is_gone_is_kept_for_a_human_and_never_called_drained(
    db_url: str, outside: Outside, tmp_path: Path, caplog: Any
):
    """The database was replaced by an empty one, say."""
    answer = await _leave_an_answer(db_url)
    await _forget_runs(outside)
    async with service(db_url, client := ScriptedClient()) as llm:
        (kept,) = _files(tmp_path, ".unplaced")
        assert from_line(kept.read_bytes()).run_id == answer.run_id
        (told,) = _told(caplog, "llm_answer_unplaced")
        assert (told["llm_run_id"], told["file"], told["level"]) == (answer.run_id, str(kept), "error")
        assert (await llm.chat(KEYED)).served_from is ServedFrom.LIVE
    assert _told(caplog, "llm_spool_drained") == []
    assert (client.sends, _files(tmp_path)) == (1, [])


async def test_an_answer_that_can_neither_be_placed_nor_kept_stays_and_nothing_is_sent(
    db_url: str, outside: Outside
):
    async with rig(db_url) as rigged:
        rigged.ledger.away_for = {"finish"}
        await rigged.llm.chat(KEYED)
        await _forget_runs(outside)
        rigged.ledger.away_for = set()
        blocked = rigged.repo._spooling._spool._unplaced
        blocked.mkdir()
        for _ in range(2):
            with pytest.raises(LLMLedgerError, match="directory"):
                await rigged.llm.chat(request())
        assert (rigged.client.sends, len(_files(rigged.spool))) == (1, 1)
        blocked.rmdir()
        await rigged.llm.chat(request())
        assert (blocked.is_file(), _files(rigged.spool)) == (True, [])


async def test_an_answer_whose_row_went_during_the_call_is_returned_as_not_recorded_and_kept(
    db_url: str, outside: Outside, tmp_path: Path, caplog: Any
):
    async def forget(*_: Any) -> None:
        await _forget_runs(outside)

    async with rig(db_url, Watched(forget)) as rigged:
        answer = await rigged.llm.chat(KEYED)
        assert (answer.text, answer.persisted) == ("answer 1", False)
    (told,) = _told(caplog, "llm_answer_unplaced")
    assert (told["llm_run_id"], told["level"]) == (answer.run_id, "error")
    assert [from_line(file.read_bytes()).run_id for file in _files(tmp_path, ".unplaced")] == [answer.run_id]


async def test_an_answer_that_can_be_kept_nowhere_is_told_of(db_url: str, outside: Outside, caplog: Any):
    async def forget(*_: Any) -> None:
        await _forget_runs(outside)

    async with rig(db_url, Watched(forget)) as rigged:
        rigged.repo._spooling._spool._unplaced.mkdir()
        answer = await rigged.llm.chat(KEYED)
        assert (answer.text, answer.persisted) == ("answer 1", False)
    (told,) = _told(caplog, "llm_answer_not_recorded")
    assert told["llm_run_id"] == answer.run_id


async def test_a_joined_answer_whose_row_the_caller_removed_is_told_of(
    db_url: str, engine: AsyncEngine, caplog: Any
):
    async with AsyncSession(engine) as session:

        async def forget(*_: Any) -> None:
            await session.execute(sa.delete(LLMRun))

        async with service(db_url, Watched(forget)) as llm:
            answer = await llm.joined(session).chat(KEYED)
    assert not answer.persisted
    (told,) = _told(caplog, "llm_answer_not_recorded")
    assert told["llm_run_id"] == answer.run_id


def _line(**changed: Any) -> bytes:
    run = new_run(KEYED)
    body = json.loads(to_line(of_success(run, success(run), owner="o", key_ttl_s=None, keep=True)))
    return json.dumps({**body, **changed}).encode() + b"\n"


BAD_LINES = {
    "another version": (_line(v=1), "line 1: not of version 2"),
    "no run": (_line(run={}), "line 1: run: not the columns"),
    "a list": (_line(run=[]), "line 1: run: not the columns"),
    "fields missing": (_line(run={"id": "x"}), "line 1: run: not the columns"),
    "no text": (b"\xff\xfe\n", "line 1: not JSON"),
    "cut off": (_line()[:99], "line 1 is cut off"),
}


@pytest.mark.parametrize("bad", BAD_LINES)
async def test_a_bad_line_stops_no_start_and_is_kept_and_told_of(
    db_url: str, outside: Outside, tmp_path: Path, caplog: Any, bad: str
):
    """The whole lines beside it are written."""
    line, reason = BAD_LINES[bad]
    answer = await _leave_an_answer(db_url)
    (left,) = _files(tmp_path)
    left.write_bytes(
        written := (line + left.read_bytes() if line.endswith(b"\n") else left.read_bytes() + line)
    )
    async with service(db_url, client := ScriptedClient()) as llm:
        assert (await llm.chat(KEYED)).run_id == answer.run_id
    assert (client.sends, (await outside.run(answer.run_id))["status"]) == (0, "SUCCEEDED")
    (told,) = _told(caplog, "llm_spool_refused")
    kept = left.with_suffix(".refused")
    assert (told["level"], told["file"], told["lines"]) == ("error", str(kept), 1)
    assert told["error_message"].startswith(reason if line.endswith(b"\n") else reason.replace("1", "2"))
    assert (kept.read_bytes(), _files(tmp_path)) == (written, [])


async def test_a_file_that_cannot_be_opened_keeps_nobody_from_the_next_one(
    db_url: str, tmp_path: Path, caplog: Any
):
    await _leave_an_answer(db_url)
    (left,) = _files(tmp_path)
    blocked = left.with_name(f"{Spool(tmp_path, db_url).files.prefix}0-0.spool")
    blocked.mkdir()
    async with service(db_url, client := ScriptedClient()) as llm:
        assert (await llm.chat(KEYED)).served_from is ServedFrom.REPLAY
    (told,) = _told(caplog, "llm_spool_unwritable")
    assert (client.sends, told["level"], str(blocked) in told["error_message"]) == (0, "warning", True)


async def test_a_refused_file_is_read_again_once_it_has_its_name_back(db_url: str, tmp_path: Path):
    """After an upgrade, say."""
    await _leave_an_answer(db_url)
    (left,) = _files(tmp_path)
    whole = left.read_bytes()
    left.write_bytes(whole.replace(b'"v":2', b'"v":1'))
    async with service(db_url):
        (refused,) = _files(tmp_path, ".refused")
    refused.write_bytes(whole)
    refused.rename(left)
    async with service(db_url, client := ScriptedClient()) as llm:
        assert (await llm.chat(KEYED)).served_from is ServedFrom.REPLAY
    assert client.sends == 0


# -- it is found


async def test_the_files_of_another_host_are_told_of_at_start_with_what_to_do(
    db_url: str, tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
):
    """A container that was made anew has another name."""
    with monkeypatch.context() as earlier:
        earlier.setattr(socket, "gethostname", lambda: "a-former-container")
        await _leave_an_answer(db_url)
    (left,) = _files(tmp_path)
    async with service(db_url):
        (told,) = _told(caplog, "llm_spool_of_another_host")
        assert (told["level"], told["files"]) == ("warning", str(left))
    assert _files(tmp_path) == [left]
    begin = Spool(tmp_path, db_url).files.prefix
    assert f"rename each file to begin with {begin}" in told["error_message"]
    left.rename(left.with_name(begin + "renamed-1.spool"))
    async with service(db_url, client := ScriptedClient()) as llm:
        assert (await llm.chat(KEYED)).served_from is ServedFrom.REPLAY
    assert client.sends == 0


async def test_an_answer_is_found_under_another_spelling_of_the_files_path(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
):
    """I5, I7."""
    await _leave_an_answer(sqlite_url)
    monkeypatch.chdir(tmp_path)
    async with service("sqlite+aiosqlite:///test.db", client := ScriptedClient()) as llm:
        assert (await llm.chat(KEYED)).served_from is ServedFrom.REPLAY
    assert client.sends == 0


async def _forget_runs(outside: Outside) -> None:
    async with outside.engine.begin() as connection:
        await connection.execute(sa.delete(LLMRun))
