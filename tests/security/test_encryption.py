"""With LLM_PAYLOAD_KEY nothing that was asked or answered can be read without it, and everything works as before."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.bootstrap import payload_codec
from app.cli.ledger import shown
from app.cli.run_view import emit_run, run_document
from app.llm.errors import LLMLedgerUnavailable, LLMSettingsError
from app.llm.persistence.codec import (
    AES_GCM,
    AES_GCM_ZSTD,
    PLAIN,
    ZSTD,
    Unreadable,
)
from app.llm.ports import Replay
from app.llm.settings import isolated_settings
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import ServedFrom
from tests.conformance.test_finishes import TEXTS
from tests.security.looks import ANSWER, KEY, OTHER_KEY, PROMPT, in_rows, on_disk
from tests.support.ledger import ROOT, Outside, new_run, request, success
from tests.support.service import rig, service

KEYED = request(PROMPT, idempotency_key="k1")


def answering() -> ScriptedClient:
    return ScriptedClient([text_reply(ANSWER)])


async def test_an_encrypted_answer_is_replayed_and_found_in_the_cache(db_url: str, outside: Outside):
    async with service(db_url, client := answering(), payload_key=KEY, cache_enabled=True) as llm:
        assert (await llm.chat(KEYED)).text == ANSWER
        assert (await llm.chat(request(PROMPT))).served_from is ServedFrom.CACHE
    async with service(db_url, client, payload_key=KEY) as llm:
        again = await llm.chat(KEYED)
    assert (again.text, again.served_from, client.sends) == (ANSWER, ServedFrom.REPLAY, 1)
    assert {row["codec"] for row in await outside.payloads()} == {AES_GCM_ZSTD}


async def test_no_text_is_in_rows_or_files(db_url: str, outside: Outside, tmp_path: Path):
    async with service(db_url, answering(), payload_key=KEY) as llm:
        await llm.chat(KEYED)
    stored = await in_rows(outside) + on_disk(tmp_path)
    assert PROMPT.encode() not in stored
    assert ANSWER.encode() not in stored
    assert KEY.encode() not in stored


async def test_without_a_key_the_same_look_finds_both(db_url: str, outside: Outside):
    """The look itself can fail."""
    async with service(db_url, answering()) as llm:
        await llm.chat(KEYED)
    stored = await in_rows(outside)
    assert PROMPT.encode() in stored
    assert ANSWER.encode() in stored


async def test_equal_texts_are_stored_once_in_a_workspace_and_unlike_in_two(db_url: str, outside: Outside):
    asked = [request(PROMPT, metadata={"workspace_id": name, "n": n}) for n in (1, 2) for name in ("a", "b")]
    client = ScriptedClient([text_reply(ANSWER)] * len(asked))
    async with service(db_url, client, payload_key=KEY, default_workspace=None) as llm:
        for each in asked:
            await llm.chat(each)
    answers = {(run["workspace_id"], run["response_payload"]) for run in await outside.runs()}
    assert len(answers) == len({address for _, address in answers}) == 2


@pytest.mark.parametrize("key", [None, OTHER_KEY], ids=["missing", "wrong"])
async def test_without_its_key_an_answer_is_an_error_that_names_the_setting_and_never_a_hit(
    db_url: str, key: str | None
):
    async with service(db_url, answering(), payload_key=KEY, cache_enabled=True) as llm:
        await llm.chat(KEYED)
    async with service(db_url, client := ScriptedClient(), payload_key=key, cache_enabled=True) as llm:
        with pytest.raises(LLMLedgerUnavailable, match="LLM_PAYLOAD_KEY") as caught:
            await llm.chat(KEYED)
        assert client.sends == 0
        assert (await llm.chat(request(PROMPT))).served_from is ServedFrom.LIVE
    assert caught.value.__context__ is None


async def test_after_a_rotation_old_and_new_answers_are_read(db_url: str):
    other = request("another prompt", idempotency_key="k2")
    async with service(db_url, answering(), payload_key=KEY) as llm:
        await llm.chat(KEYED)
    async with service(db_url, ScriptedClient(), payload_key=f"{OTHER_KEY}, {KEY}") as llm:
        assert (await llm.chat(KEYED)).text == ANSWER
        await llm.chat(other)
    async with service(db_url, ScriptedClient(), payload_key=OTHER_KEY) as llm:
        assert (await llm.chat(other)).served_from is ServedFrom.REPLAY
        with pytest.raises(LLMLedgerUnavailable):
            await llm.chat(KEYED)


async def test_what_was_stored_before_encryption_stays_readable(db_url: str, outside: Outside):
    async with service(db_url, answering()) as llm:
        await llm.chat(KEYED)
    async with service(db_url, ScriptedClient(), payload_key=KEY) as llm:
        assert (await llm.chat(KEYED)).text == ANSWER
    assert {row["codec"] for row in await outside.payloads()} == {ZSTD}


@pytest.mark.parametrize("text", [*TEXTS.values(), "ab" * 2**20], ids=[*TEXTS, "2 MiB"])
async def test_any_answer_comes_back_as_it_was(db_url: str, text: str):
    async with rig(db_url, payload_key=KEY) as one:
        run = new_run(request(idempotency_key="k1"))
        await one.repo.create_started(run)
        assert (await one.repo.mark_succeeded(run, success(run, text))).persisted
        found = await one.repo.get_by_idempotency_key("w1", "k1", run.request_sha256)
    assert isinstance(found, Replay)
    assert found.answer.response is not None
    assert found.answer.response.text == text


async def test_the_joined_binding_encrypts_too(db_url: str, engine: AsyncEngine, outside: Outside):
    async with service(db_url, answering(), payload_key=KEY) as llm, AsyncSession(engine) as session:
        await llm.joined(session).chat(KEYED)
        await session.commit()
        assert (await llm.chat(KEYED)).text == ANSWER
    assert PROMPT.encode() not in await in_rows(outside)


async def test_a_spool_line_holds_no_text_and_is_replayed_by_who_has_the_key(db_url: str, tmp_path: Path):
    async with rig(db_url, answering(), payload_key=KEY, spool_dir=tmp_path) as one:
        one.ledger.away_for.add("finish")
        assert not (await one.llm.chat(KEYED)).persisted
        assert (await one.llm.chat(KEYED)).text == ANSWER
        written = on_disk(tmp_path)
        assert b'"codec":3' in written
        assert PROMPT.encode() not in written
        assert ANSWER.encode() not in written
    async with rig(db_url, payload_key=KEY, spool_dir=tmp_path) as two:
        assert (await two.llm.chat(KEYED)).text == ANSWER
        assert two.client.sends == 0


async def test_a_spooled_answer_reaches_the_database_without_the_key_but_is_not_read(
    db_url: str, tmp_path: Path
):
    async with rig(db_url, answering(), payload_key=KEY, spool_dir=tmp_path) as one:
        one.ledger.away_for.add("finish")
        await one.llm.chat(KEYED)
    async with rig(db_url, spool_dir=tmp_path) as two:
        assert not len(two.repo._spooling), "it was drained"
        with pytest.raises(LLMLedgerUnavailable, match="LLM_PAYLOAD_KEY"):
            await two.llm.chat(KEYED)
        assert two.client.sends == 0
    async with rig(db_url, payload_key=KEY) as three:
        assert (await three.llm.chat(KEYED)).text == ANSWER
        assert three.client.sends == 0


async def test_a_pending_answer_is_not_read_without_the_key_either(db_url: str, tmp_path: Path):
    async with rig(db_url, answering(), payload_key=KEY, spool_dir=tmp_path) as one:
        one.ledger.away_for.add("finish")
        await one.llm.chat(KEYED)
        one.repo._spooling._codec = PLAIN
        with pytest.raises(LLMLedgerUnavailable, match="LLM_PAYLOAD_KEY"):
            await one.llm.chat(KEYED)


async def test_an_owner_that_cannot_read_its_successors_answer_is_fenced_and_recorded(
    db_url: str, outside: Outside
):
    run, later = new_run(KEYED), new_run(KEYED)
    async with rig(db_url, payload_key=KEY) as one, rig(db_url, payload_key=OTHER_KEY) as two:
        await one.repo.create_started(run)
        await outside.end_lease(run.run_id)
        await two.repo.create_started(later)
        await two.repo.mark_succeeded(later, success(later))
        ended = await one.repo.mark_succeeded(run, success(run, "late"))
        assert ended.fenced
        assert ended.persisted
        assert ended.successor_run_id == later.run_id
        assert ended.winner is not None
        assert ended.winner.response is None
    row = await outside.run(run.run_id)
    assert (row["status"], bool(row["late"])) == ("ABANDONED", True)


@pytest.mark.parametrize("key", [KEY, f"{OTHER_KEY},{KEY}", OTHER_KEY, None])
async def test_a_run_is_shown_with_its_texts_to_who_has_the_key(
    db_url: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, key: str | None
):
    async with service(db_url, answering(), payload_key=KEY) as llm:
        run_id = (await llm.chat(KEYED)).run_id
    monkeypatch.setenv("LLM_DATABASE_URL", db_url)
    if key is not None:
        monkeypatch.setenv("LLM_PAYLOAD_KEY", key)
    details = await shown(run_id)
    document = run_document(details)
    emit_run(details)
    told, readable = capsys.readouterr().out, key is not None and KEY in key
    assert (PROMPT in told, ANSWER in told) == (readable, readable)
    assert ("encrypted: set LLM_PAYLOAD_KEY" in told) is document["encrypted"] is not readable
    assert (document["request"] is None, document["response"] is None) == (not readable, not readable)


def cipher(keys: str = KEY) -> Any:
    return payload_codec(isolated_settings(payload_key=keys))


def _moved(place: str) -> dict[str, str]:
    return {"workspace_id": "w1", "address": "a" * 64} | {place: "elsewhere"}


def test_what_was_encrypted_before_it_was_compressed_stays_readable():
    where = {"workspace_id": "w1", "address": "a"}
    sealed = b"n" * 12 + AESGCM(bytes(range(32))).encrypt(b"n" * 12, b"text", b'["w1","a",2]')
    assert cipher().decode(AES_GCM, sealed, **where) == b"text"
    with pytest.raises(Unreadable):
        cipher().decode(AES_GCM_ZSTD, sealed, **where)


def test_a_long_text_is_compressed_before_it_is_encrypted():
    where, text = {"workspace_id": "w1", "address": "a"}, b"signal " * 500
    codec, data = cipher().encode(text, **where)
    assert (codec, len(data) < 100) == (AES_GCM_ZSTD, True)
    assert cipher().decode(codec, data, **where) == text


@pytest.mark.parametrize("place", ["workspace_id", "address"])
def test_a_payload_that_was_moved_does_not_open(place: str):
    codec, data = cipher().encode(b"text", workspace_id="w1", address="a" * 64)
    with pytest.raises(Unreadable, match="LLM_PAYLOAD_KEY"):
        cipher().decode(codec, data, **_moved(place))


@pytest.mark.parametrize("cut", [0, 1, 12, 20, -1])
def test_a_payload_that_was_cut_or_changed_does_not_open(cut: int):
    codec, data = cipher().encode(b"text", workspace_id="w1", address="a")
    for wrong in (data[:cut], data[:cut] + bytes([data[cut] ^ 1]) + data[cut:][1:]):
        with pytest.raises(Unreadable):
            cipher().decode(codec, wrong, workspace_id="w1", address="a")


def test_no_two_payloads_look_alike_and_an_address_is_no_plain_hash():
    where = {"workspace_id": "w1", "address": "a"}
    assert cipher().encode(b"text", **where)[1] != cipher().encode(b"text", **where)[1]
    addresses = {
        codec.address(b"text", workspace_id=name)
        for codec in (cipher(), cipher(f"{OTHER_KEY},{KEY}"), PLAIN)
        for name in ("w1", "w2")
    }
    assert len(addresses) == 5, "two of each cipher, one plain"
    assert cipher().address(b"text", workspace_id="w1") == cipher().address(b"text", workspace_id="w1")


@pytest.mark.parametrize("value", ["short", KEY[:-4], f"{KEY},{KEY[1:]}", f"{KEY};{KEY}", "é" * 44, KEY * 2])
def test_a_wrong_key_is_refused_unseen_with_the_command_that_makes_one(
    monkeypatch: pytest.MonkeyPatch, value: str
):
    monkeypatch.setenv("LLM_PAYLOAD_KEY", value)
    from app.llm.settings import load_settings

    with pytest.raises(LLMSettingsError, match=r"LLM_PAYLOAD_KEY=\*+: .*openssl rand -base64 32") as caught:
        load_settings()
    assert value not in caught.value.message
    assert caught.value.__context__ is None


def test_every_key_is_known_to_the_redactor():
    settings = isolated_settings(payload_key=f"{KEY}, {OTHER_KEY}")
    assert {KEY, OTHER_KEY} < set(settings.secrets())
    assert KEY not in f"{settings!r} {cipher()!r} {vars(cipher())!r}"


async def test_a_missing_library_is_named_before_a_database_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "app.llm.persistence.cipher", raising=False)
    with pytest.raises(LLMSettingsError, match=r"signalbox\[crypto\]") as caught:
        async with service(f"sqlite+aiosqlite:///{tmp_path}/new.db", payload_key=KEY):
            pass
    assert KEY not in repr(caught.value)
    assert not (tmp_path / "new.db").exists()


def test_without_a_key_the_library_is_not_loaded():
    look = (
        "import sys, app.bootstrap as b, app.llm.persistence.autonomous\n"
        "from app.llm.settings import isolated_settings\n"
        "b.payload_codec(isolated_settings())\n"
        "assert not any(name.split('.')[0] == 'cryptography' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", look], cwd=ROOT, check=True)
