"""Databases that are full, read-only, corrupt or cut off: nothing is sent that cannot be recorded, nothing paid is lost."""

import asyncio
import random
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from app.db.engine import build_engine
from app.llm.errors import LLMLedgerBusy, LLMLedgerError, LLMLedgerUnavailable
from app.llm.persistence.executor import Step, Steps
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import LLMResponse, ServedFrom
from tests.support.ledger import Outside, request
from tests.support.service import Rig, limited, rig, service
from tests.support.worker import run_jobs

pytestmark = pytest.mark.crash
KEYED = request(idempotency_key="k1")
TURNS = 5
LONG = random.Random(5).randbytes(100_000).hex()  # noqa: S311  # compression must not make it fit


async def _break(rigged: Rig, pragma: str) -> None:
    """Tell it to the ledger's one writing connection."""

    def steps() -> Steps[None]:
        yield Step(sa.text(f"PRAGMA {pragma}"), {})

    await rigged.executor.transaction(steps)


def _mend(rigged: Rig) -> None:
    """Let the writer, which has nothing to do now, open a connection that was told nothing."""
    rigged.executor._writer._connection = None


FULL = "a disk that is full", "max_page_count=1", "free some space"
READ_ONLY = "a file that became read-only", "query_only=1", "may write neither"
FAULTS = pytest.mark.parametrize(
    ("broken", "advice"), [each[1:] for each in (FULL, READ_ONLY)], ids=[FULL[0], READ_ONLY[0]]
)


@FAULTS
async def test_nothing_is_sent_where_nothing_can_be_written(sqlite_url: str, broken: str, advice: str):
    """I6: refused in one line that says what to do."""
    async with rig(sqlite_url) as rigged:
        await _break(rigged, broken)
        for n in range(50):  # a full database may have room for a row on its last page
            asked = request(idempotency_key=f"k{n}", metadata={"m": "x" * 4000})
            outcome = (await asyncio.gather(rigged.llm.chat(asked), return_exceptions=True))[0]
            if isinstance(outcome, LLMLedgerUnavailable):
                break
            assert rigged.client.sends == n + 1
        assert isinstance(outcome, LLMLedgerUnavailable)
        assert advice in str(outcome)
        assert "\n" not in str(outcome)
        sent = rigged.client.sends
        _mend(rigged)
        assert (await rigged.llm.chat(KEYED)).persisted
        assert rigged.client.sends == sent + 1


@FAULTS
async def test_what_was_paid_while_the_database_filled_up_is_spooled_and_written_later(
    sqlite_url: str, broken: str, advice: str, caplog: Any
):
    outside = Outside(sqlite_url)
    async with rig(sqlite_url, ScriptedClient([text_reply(LONG)])) as rigged:
        client = rigged.client
        client.gate = asyncio.Event()
        call = asyncio.create_task(rigged.llm.chat(KEYED))
        while not client.sends:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await _break(rigged, broken)
        client.gate.set()
        answer = await call
        assert (answer.persisted, rigged.checked_out()) == (False, 0)
        assert advice in caplog.text
        _mend(rigged)
        await rigged.llm.chat(request(idempotency_key="k2"))
        assert (await rigged.llm.chat(KEYED)).served_from is ServedFrom.REPLAY
    row = await outside.run(answer.run_id)
    assert (row["status"], len(await outside.attempts(row["id"]))) == ("SUCCEEDED", 1)
    await outside.close()


def _no_database(file: Path) -> None:
    file.write_bytes(b"not a database at all " * 500)


def _torn_pages(file: Path) -> None:
    with file.open("r+b") as pages:
        pages.seek(4096)
        pages.write(b"\xff" * (file.stat().st_size - 4096))


@pytest.mark.parametrize("damage", [_no_database, _torn_pages])
async def test_a_corrupt_file_is_refused_in_one_line_that_says_what_to_do(
    sqlite_url: str, tmp_path: Path, damage: Callable[[Path], None]
):
    damage(tmp_path / "test.db")
    client = ScriptedClient()
    with pytest.raises(LLMLedgerUnavailable, match="restore it from a backup, or move it away") as caught:
        async with service(sqlite_url, client) as llm:
            await llm.chat(KEYED)
    assert "\n" not in str(caught.value)
    assert client.sends == 0


def test_a_file_that_may_only_be_read_is_refused_at_start(sqlite_url: str, tmp_path: Path):
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # where another user can come as well
    try:
        file = Path(shutil.copy(tmp_path / "test.db", folder / "read-only.db"))
        file.chmod(0o444)
        folder.chmod(0o555)
        ((code, message),) = run_jobs([{"job": "call_without_rights", "url": f"sqlite+aiosqlite:///{file}"}])
        assert code == "ledger_unavailable"
        assert (str(file) in message, "LLM_DATABASE_URL" in message, "\n" in message) == (True, True, False)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


async def test_a_second_engine_of_one_process_leaves_the_locks_of_the_first_alone(
    sqlite_url: str, tmp_path: Path
):
    """Else another process that ends removes the write-ahead log under the first one, which then sees a torn file."""
    async with service(sqlite_url) as llm:
        await llm.chat(request())
        await build_engine(sqlite_url).dispose()
        job = {
            "job": "race",
            "url": sqlite_url,
            "file": str(tmp_path / "sends"),
            "keys": ["k1"],
            "settings": {},
        }
        await asyncio.to_thread(run_jobs, [job])
        assert (tmp_path / "test.db-wal").exists(), "the other process was not the last one to leave"
        assert (await llm.chat(KEYED)).served_from is ServedFrom.REPLAY


async def test_a_disk_that_ends_within_a_spool_line_leaves_no_half_of_it(sqlite_url: str, caplog: Any):
    """The answer is returned, one ERROR names the run, and what is known in memory is written when it can be."""
    async with rig(sqlite_url) as rigged:
        rigged.ledger.away_for = {"finish"}
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        rigged.ledger.before = lambda name: (
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1])) if name == "finish" else None
        )
        try:
            answer = await rigged.llm.chat(KEYED)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert answer.persisted is False
        assert caplog.text.count("llm_answer_not_recorded") == 1
        assert answer.run_id in caplog.text
        (spool,) = rigged.spool.glob("*.spool")
        assert spool.stat().st_size == 0
        rigged.ledger.before = lambda _: None
        with pytest.raises(LLMLedgerError):  # what is known in memory comes first
            await rigged.llm.chat(request())
        rigged.ledger.away_for = set()
        assert (await rigged.llm.chat(KEYED)).served_from is ServedFrom.REPLAY
        assert (await rigged.llm.chat(request())).persisted
        assert not spool.exists()


# -- PostgreSQL, cut off


def _admin(url: str, statement: str) -> None:
    """Run it in a thread of its own: the caller's loop stands still meanwhile."""
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)

    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    thread.join()


CUT = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@pytest.mark.pg
@pytest.mark.parametrize("when", ["before", "between", "after"])
@pytest.mark.parametrize("name", ["claim", "note_send", "finish"])
async def test_connections_that_are_cut_lose_no_answer_and_double_none(pg_url: str, when: str, name: str):
    """I6, I12: a claim or a note that may have failed is followed by no send; a finish is repeated."""
    async with rig(pg_url, ScriptedClient([limited()])) as rigged:
        cuts: list[str] = []

        def cut(which: str) -> None:
            if which == name and not cuts:
                cuts.append(which)
                _admin(pg_url, CUT)

        setattr(rigged.ledger, when, cut)
        outcome = (await asyncio.gather(rigged.llm.chat(KEYED), return_exceptions=True))[0]
        assert cuts == [name]
        lost = when == "between" and name != "finish"
        assert isinstance(outcome, LLMLedgerError if lost else LLMResponse)
        assert rigged.client.sends == (0 if name == "claim" else 1 if name == "note_send" else 2) or not lost
        await rigged.llm.drain()
        assert rigged.checked_out() == 0
    outside = Outside(pg_url)
    rows = await outside.runs()
    assert [row["status"] for row in rows] == (
        [] if lost and name == "claim" else ["FAILED" if lost else "SUCCEEDED"]
    )
    for row in rows:
        assert len(await outside.attempts(row["id"])) == rigged.client.sends <= row["sends_noted"]
    await outside.close()


@pytest.mark.pg
@pytest.mark.tried(TURNS)
async def test_callers_on_a_server_that_serializes_everything_still_make_one_send_for_a_key(pg_url: str):
    """I1, I2: refused transactions are run again, or end in an error that says so; each key is paid once."""
    database = make_url(pg_url).database
    _admin(pg_url, f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")
    try:
        async with rig(pg_url, on_in_progress="wait") as rigged:
            for turn in range(TURNS):
                asked = request(idempotency_key=f"k{turn}")
                outcomes = await asyncio.gather(
                    *(rigged.llm.chat(asked) for _ in range(20)), return_exceptions=True
                )
                assert {type(outcome) for outcome in outcomes} <= {LLMResponse, LLMLedgerBusy}
                answers = [outcome.text for outcome in outcomes if isinstance(outcome, LLMResponse)]
                assert set(answers) == {f"answer {turn + 1}"}, "somebody is answered, and all of them alike"
                assert rigged.client.sends == turn + 1
            await rigged.llm.drain()
            assert rigged.checked_out() == 0
        outside = Outside(pg_url)
        assert await outside.runs(status="STARTED") == []
        await outside.close()
    finally:
        _admin(pg_url, f"ALTER DATABASE {database} RESET default_transaction_isolation")
