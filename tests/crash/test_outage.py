"""The database goes away: before a call nothing is sent, after a paid call the answer is returned and kept."""

import asyncio
import json
import logging
import signal
from pathlib import Path
from typing import Any

import pytest

from app.db.migrate import upgrade
from app.llm.errors import LLMKeyConflict, LLMLedgerError
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import ServedFrom
from tests.support.ledger import Outside, request
from tests.support.service import Watched, refused, rig, service
from tools.postgres import Postgres

pytestmark = pytest.mark.crash
KEYED = request(idempotency_key="k1")


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


def _spools(folder: Path, pattern: str = "*.spool") -> list[Path]:
    return sorted(folder.rglob(pattern))


async def test_a_paid_answer_survives_a_database_that_is_away(db_url: str, outside: Outside, caplog: Any):
    """Returned, spooled, replayed from the pending line, and written before the next claim."""
    async with rig(db_url) as rigged:
        rigged.ledger.away_for = {"finish"}
        answer = await rigged.llm.chat(KEYED)
        assert (answer.text, answer.persisted) == ("answer 1", False)
        (spool,) = _spools(rigged.spool)
        assert spool.stat().st_mode & 0o777 == 0o600
        assert "llm_spooled" in caplog.text

        rigged.ledger.away = True
        replay = await rigged.llm.chat(KEYED)
        assert (replay.text, replay.run_id, replay.served_from) == (
            answer.text, answer.run_id, ServedFrom.REPLAY,
        )  # fmt: skip
        with pytest.raises(LLMKeyConflict):
            await rigged.llm.chat(request("Other", idempotency_key="k1"))
        with pytest.raises(LLMLedgerError):
            await rigged.llm.chat(request(idempotency_key="k2"))
        assert rigged.client.sends == 1

        rigged.ledger.away, rigged.ledger.away_for = False, set()
        rigged.ledger.seen.clear()
        await rigged.llm.chat(request(idempotency_key="k2"))
        assert rigged.ledger.seen.index("finish") < rigged.ledger.seen.index("claim")
        assert _spools(rigged.spool) == []
    row = await outside.run(answer.run_id)
    assert (row["status"], row["idem_slot"], row["total_tokens"]) == ("SUCCEEDED", "k1", 8)
    assert len(await outside.attempts(answer.run_id)) == 1


async def test_a_short_outage_is_waited_for_within_the_finish_budget(db_url: str, outside: Outside):
    async with rig(db_url) as rigged:

        def back_at_the_third(name: str) -> None:
            rigged.ledger.away_for = {"finish"} if rigged.ledger.seen.count("finish") < 3 else set()

        rigged.ledger.before = back_at_the_third
        answer = await rigged.llm.chat(KEYED)
        assert answer.persisted
        assert rigged.ledger.seen.count("finish") == 3
        assert _spools(rigged.spool) == []
    assert (await outside.run(answer.run_id))["status"] == "SUCCEEDED"


async def test_a_lost_acknowledgement_of_a_finish_is_no_second_finish(db_url: str, outside: Outside):
    """I12: committed, then the connection broke."""
    async with rig(db_url) as rigged:
        rigged.ledger.lost_acknowledgements = {"finish"}
        answer = await rigged.llm.chat(KEYED)
        assert answer.persisted
        assert rigged.ledger.seen.count("finish") == 2
    (row,) = await outside.runs()
    assert row["status"] == "SUCCEEDED"
    assert len(await outside.attempts(answer.run_id)) == 1


async def test_a_lost_acknowledgement_of_a_claim_sends_nothing(db_url: str, outside: Outside):
    """Fail closed: we do not know that we won. The row's lease ends by itself."""
    async with rig(db_url) as rigged:
        rigged.ledger.lost_acknowledgements = {"claim"}
        with pytest.raises(LLMLedgerError):
            await rigged.llm.chat(KEYED)
        assert rigged.client.sends == 0
        (row,) = await outside.runs()
        await outside.end_lease(row["id"])
        assert (await rigged.llm.chat(KEYED)).text == "answer 1"


async def test_a_failure_that_could_not_be_written_frees_its_key_when_the_database_is_back(
    db_url: str, outside: Outside
):
    """I10."""
    async with rig(db_url, ScriptedClient([refused()]), max_attempts=1) as rigged:
        rigged.ledger.away_for = {"finish"}
        with pytest.raises(Exception, match="refused"):
            await rigged.llm.chat(KEYED)
        rigged.ledger.away_for = set()
        assert (await rigged.llm.chat(KEYED)).served_from is ServedFrom.LIVE
    assert [row["status"] for row in await outside.runs()] == ["FAILED", "SUCCEEDED"]


async def test_closing_writes_what_was_spooled(db_url: str, outside: Outside):
    async with rig(db_url) as rigged:
        rigged.ledger.away_for = {"finish"}
        answer = await rigged.llm.chat(KEYED)
        rigged.ledger.away_for = set()
    assert (await outside.run(answer.run_id))["status"] == "SUCCEEDED"
    assert _spools(rigged.spool) == []


async def test_a_spool_that_cannot_be_written_costs_the_record_and_not_the_answer(
    sqlite_url: str, tmp_path: Path, caplog: Any
):
    """One ERROR line names the run; start-up has warned already."""
    blocked = tmp_path / "a file, not a directory"
    blocked.write_text("")
    async with rig(sqlite_url, spool_dir=blocked) as rigged:
        assert [
            record.levelno for record in caplog.records if "spool cannot be read or written" in record.message
        ] == [logging.WARNING]
        rigged.ledger.away_for = {"finish"}
        answer = await rigged.llm.chat(KEYED)
        assert (answer.text, answer.persisted) == ("answer 1", False)
        errors = [json.loads(record.message) for record in caplog.records if record.levelno == logging.ERROR]
        assert [(error["event"], error["llm_run_id"]) for error in errors] == [
            ("llm_answer_not_recorded", answer.run_id)
        ]
        assert (await rigged.llm.chat(KEYED)).served_from is ServedFrom.REPLAY


async def test_a_torn_line_is_kept_aside_and_the_whole_ones_are_written(
    db_url: str, outside: Outside, caplog: Any
):
    """A process was killed while it wrote: its answer was never returned, the others were."""
    client = ScriptedClient(gate=asyncio.Event())
    async with rig(db_url, client) as rigged:
        rigged.ledger.away_for = {"finish"}
        calls = [asyncio.create_task(rigged.llm.chat(request(idempotency_key=f"k{n}"))) for n in range(2)]
        while client.sends < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        client.gate.set()  # type: ignore[union-attr]
        whole = await asyncio.gather(*calls)
        (spool,) = _spools(rigged.spool)
        lines = spool.read_bytes()
        rigged.ledger.away_for = set()
    for answer in whole:  # as if nobody had written them yet
        await outside.update(answer.run_id, status="STARTED", finished_at=None)
    left = spool.with_name(spool.name.replace(".spool", "0.spool"))
    left.write_bytes(lines + lines[: len(lines) // 3])
    async with service(db_url) as llm:
        for n, answer in enumerate(whole):
            assert (await llm.chat(request(idempotency_key=f"k{n}"))).text == answer.text
    assert [(await outside.run(answer.run_id))["status"] for answer in whole] == ["SUCCEEDED"] * 2
    assert not left.exists()
    kept = left.with_suffix(".refused")
    assert kept.read_bytes() == lines + lines[: len(lines) // 3]
    told = [json.loads(record.message) for record in caplog.records if record.levelno == logging.ERROR]
    (refused,) = (each for each in told if each["event"] == "llm_spool_refused")
    assert (refused["file"], "line 3 is cut off" in refused["error_message"]) == (str(kept), True)


async def test_a_spooled_answer_of_an_owner_that_was_taken_over_is_accounted_late(
    db_url: str, outside: Outside
):
    """I8: another machine could not see the spool; after the lease it executed the key again."""
    async with rig(db_url) as rigged:
        rigged.ledger.away_for = {"finish"}
        mine = await rigged.llm.chat(KEYED)
        await outside.end_lease(mine.run_id)
        async with rig(
            db_url, ScriptedClient([text_reply("theirs")]), spool_dir=rigged.spool / "host b"
        ) as other:
            theirs = await other.llm.chat(KEYED)
        rigged.ledger.away_for = set()
        await rigged.llm.chat(request())
        assert (await rigged.llm.chat(KEYED)).text == "theirs"
    assert theirs.text == "theirs"
    old = await outside.run(mine.run_id)
    assert (old["status"], old["late"], old["idem_slot"]) == ("ABANDONED", True, None)
    assert (await outside.run(theirs.run_id))["status"] == "SUCCEEDED"


async def test_a_caller_that_leaves_while_the_spool_is_drained_breaks_nothing(db_url: str, outside: Outside):
    """I11."""
    async with rig(db_url) as rigged:
        rigged.ledger.away_for = {"finish"}
        answer = await rigged.llm.chat(KEYED)
        rigged.ledger.away_for = set()
        call = asyncio.create_task(rigged.llm.chat(request(idempotency_key="k2")))
        rigged.ledger.between = lambda name: call.cancel() if name == "finish" else None
        with pytest.raises(asyncio.CancelledError):
            await call
        rigged.ledger.between = lambda _: None
        await rigged.llm.drain()
        assert rigged.checked_out() == 0
        assert (await outside.run(answer.run_id))["status"] == "SUCCEEDED"
        assert _spools(rigged.spool) == []


# -- a real server that stops


@pytest.fixture
def server() -> Any:
    own = Postgres()
    try:
        own.start()
        yield own
    finally:
        own.close()


@pytest.mark.pg
@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGINT], ids=["immediate", "orderly"])
async def test_a_postgres_that_stops_and_comes_back(server: Postgres, tmp_path: Path, how: signal.Signals):
    """Away before a call: no send. Away after a paid call: the answer, from the spool. Back: everything is written."""
    url = server.url()
    outside = Outside(url)
    await upgrade(outside.engine)

    async def stop(*_: Any) -> None:
        await asyncio.to_thread(server.stop, how)

    async def carry_on(*_: Any) -> None: ...

    client = Watched(carry_on)
    async with service(url, client, finish_budget_s=1, ledger_timeout_s=2) as llm:
        before = await llm.chat(request(idempotency_key="k0"))
        client.look = stop
        answer = await llm.chat(KEYED)
        assert (answer.text, answer.persisted) == ("answer 2", False)
        client.look = carry_on
        for asked in (request(), request(idempotency_key="k2"), request(idempotency_key="k0")):
            with pytest.raises(LLMLedgerError):
                await llm.chat(asked)
        assert (await llm.chat(KEYED)).served_from is ServedFrom.REPLAY
        assert client.sends == 2

        await asyncio.to_thread(server.start)
        assert (await llm.chat(request(idempotency_key="k2"))).text == "answer 3"
        assert (await llm.chat(request(idempotency_key="k0"))).text == before.text
        assert (await llm.chat(KEYED)).text == answer.text
    assert [row["status"] for row in await outside.runs()] == ["SUCCEEDED"] * 3
    assert _spools(tmp_path) == []
    await outside.close()
