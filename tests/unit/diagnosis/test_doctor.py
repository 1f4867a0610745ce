"""Everything green, then one thing at a time that is not: it is red, with its remedy, and nothing else is."""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from aiohttp import web
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from app.core.ids import new_id
from app.db.engine import build_engine
from app.db.migrate import downgrade
from app.diagnosis.findings import State
from app.llm.testing import StubAnthropic, StubGemini, StubOllama
from app.llm.testing.listener import Listener
from app.llm.wire import dialect
from tests.support import programs
from tests.support.doctor import CLOUD, KEY, House, SkewedClock, answering, house, looked, red
from tests.support.ledger import ROOT

MODELS = {
    "ollama": "ollama:llama3.2",
    "gemini": "gemini:gemini-2.5-flash",
    "openai": "openai:gpt-4.1-mini",
    "anthropic": "anthropic:claude-haiku-4-5",
    "groq": "groq:openai/gpt-oss-20b",
}


async def test_all_is_green_and_nothing_was_called(db_url: str):
    """On SQLite and PostgreSQL."""
    with house(db_url) as home:
        findings = await home.look()
        assert {name: each for name, each in findings.items() if each.state is not State.OK} == {}
        assert [stub.sends for stub in home.stubs.values()] == [0] * 5
    keys = [f"{name} key" for name in CLOUD]
    assert {"settings", "routing", "database", "tables", "clock", "spool", "disk"} < set(findings)
    assert {*MODELS, *MODELS.values(), *keys, "LiteLLM", "lane"} < set(findings)
    assert ("permissions" in findings, "rights" in findings) == (
        db_url.startswith("sqlite"),
        db_url.startswith("postgresql"),
    )
    assert findings[MODELS["ollama"]].said == "it is there, window 8,192 of 131,072 tokens"
    assert "version 0.12.6" in findings["ollama"].said
    assert findings["lane"].said == "dialect, to Ollama and Gemini"


@pytest.mark.parametrize("provider", MODELS)
async def test_a_server_that_is_down_is_red_alone(at_home: House, provider: str):
    at_home.stubs[provider].down()
    findings = await at_home.look()
    assert red(findings) == [provider]
    assert "cannot be reached" in findings[provider].said
    assert f"LLM_{provider.upper()}_API_BASE" in str(findings[provider].remedy)
    assert findings[MODELS[provider]].state is State.SKIPPED


async def test_a_down_ollama_is_to_be_started(at_home: House):
    at_home.stubs["ollama"].down()
    assert "ollama serve" in str((await at_home.look())["ollama"].remedy)


@pytest.mark.parametrize("provider", CLOUD)
async def test_a_wrong_key_is_red_and_never_shown(at_home: House, provider: str):
    wrong = "wrong-key-9876543210"
    findings = await at_home.look(**{f"{provider}_api_key": wrong})
    key = findings[f"{provider} key"]
    assert red(findings) == [f"{provider} key"]
    assert findings[provider].state is State.OK
    assert f"LLM_{provider.upper()}_API_KEY" in str(key.remedy)
    assert (wrong in repr(findings), KEY in repr(findings)) == (False, False)


async def test_a_proxy_in_front_of_ollama_wants_its_token(sqlite_url: str):
    with StubOllama(api_key="t-0123456789") as stub:
        given = {
            "database_url": sqlite_url,
            "ollama_api_base": stub.base_url,
            **{f"profile_{name}": "ollama" for name in ("fast", "balanced", "advanced")},
        }
        without = await looked(given)
        wrong = await looked({**given, "ollama_api_key": "t-9999999999"})
        right = await looked({**given, "ollama_api_key": "t-0123456789"})
    assert (red(without), red(wrong), red(right)) == (["ollama"], ["ollama key"], [])
    assert str(without["ollama"].remedy) == "set LLM_OLLAMA_API_KEY"


async def test_no_key_is_a_warning_with_its_remedy(at_home: House):
    findings = await at_home.look(groq_api_key=None)
    assert red(findings) == []
    assert findings["groq"].state is State.WARNING
    assert "set LLM_GROQ_API_KEY" in str(findings["groq"].remedy)
    assert at_home.stubs["groq"].requests == ()


@pytest.mark.parametrize("provider", MODELS)
async def test_a_missing_model_is_red_with_its_remedy(at_home: House, provider: str):
    findings = await at_home.look(**{f"{provider}_model": "nobody-knows-it"})
    name = f"{provider}:nobody-knows-it"
    assert red(findings) == [name]
    wanted = "signalbox pull nobody-knows-it" if provider == "ollama" else f"LLM_{provider.upper()}_MODEL"
    assert wanted in str(findings[name].remedy)


@pytest.mark.parametrize("provider", MODELS)
async def test_a_wrong_url_is_red_with_its_variable(at_home: House, provider: str):
    base = at_home.given[f"{provider}_api_base"]
    wrong = base.replace("/v1beta", "/x/v1beta") if provider == "gemini" else f"{base}/x"
    findings = await at_home.look(**{f"{provider}_api_base": wrong})
    assert red(findings) == [provider]
    assert "not as" in findings[provider].said
    assert f"LLM_{provider.upper()}_API_BASE" in str(findings[provider].remedy)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"<html>It works!</html>", 200, "it is no JSON"),
        (b'{"hello": 1}', 200, "is in it"),
        (b"[]", 200, "is in it"),
        (b"", 302, "status 302"),
        (b"", 500, "status 500"),
        (b"x" * 5_000_000, 200, "larger than"),
    ],
)
@pytest.mark.parametrize("provider", ["ollama", "openai"])
async def test_whatever_answers_there_is_red(
    at_home: House, provider: str, body: bytes, status: int, said: str
):
    with answering(body, status) as address:
        findings = await at_home.look(**{f"{provider}_api_base": address})
    assert red(findings) == [provider]
    assert said in findings[provider].said


async def test_what_may_be_over_soon_is_a_warning(at_home: House):
    with answering(b"{}", 429) as address:
        busy = await at_home.look(openai_api_base=address)
    scopes = b'{"error": {"message": "You have insufficient permissions for this operation."}}'
    with answering(scopes, 403) as address:
        may_not_list = await at_home.look(openai_api_base=address)
    assert (red(busy), red(may_not_list)) == ([], [])
    assert busy["openai"].state is State.WARNING
    assert may_not_list["openai key"].state is State.WARNING


async def test_who_says_nothing_ends_with_the_time_and_hides_nothing(at_home: House):
    stub = at_home.stubs["ollama"]
    assert isinstance(stub, StubOllama)
    gate = stub.hang_show()
    findings = await looked(at_home.given, limit_s=1.0)
    gate.release()
    assert red(findings) == [MODELS["ollama"]]
    assert findings[MODELS["ollama"]].said == "no answer within 1 s"
    assert findings["groq key"].state is State.OK


async def test_a_window_beyond_the_model_s_is_told(at_home: House):
    findings = await at_home.look(ollama_num_ctx=200_000)
    window = findings[MODELS["ollama"]]
    assert (window.state, red(findings)) == (State.WARNING, [])
    assert "200,000" in window.said
    assert "LLM_OLLAMA_NUM_CTX" in str(window.remedy)


async def test_more_models_than_a_page_holds_are_all_seen(at_home: House):
    """Gemini lists 50 unasked, Anthropic 20."""
    models = [*(f"g{number}" for number in range(60)), "last"]
    with StubGemini(models, KEY) as gemini, StubAnthropic(models, KEY) as anthropic:
        findings = await at_home.look(
            gemini_api_base=gemini.base_url, gemini_model="last",
            anthropic_api_base=anthropic.base_url, anthropic_model="last",
        )  # fmt: skip
    assert red(findings) == []


async def test_with_local_only_nobody_outside_is_asked(at_home: House):
    findings = await at_home.look(local_only=True, local_hosts="127.0.0.1")
    assert at_home.stubs["gemini"].requests == ()
    assert findings["gemini"].said == "not asked: LLM_LOCAL_ONLY"
    elsewhere = await at_home.look(local_only=True, local_hosts="gpu.house")
    assert red(elsewhere) == ["routing"]
    assert {elsewhere[name].state for name in MODELS} == {State.SKIPPED}


async def test_who_is_switched_off_is_not_asked(at_home: House):
    findings = await at_home.look(providers_off="openai")
    assert (findings["openai"].state, at_home.stubs["openai"].requests) == (State.SKIPPED, ())


# -- settings


async def test_settings_that_cannot_be_read_are_red_and_the_rest_is_not_looked_at(at_home: House):
    findings = await at_home.look(queue_limit=-1)
    assert red(findings) == ["settings"]
    assert "LLM_QUEUE_LIMIT" in findings["settings"].said
    assert ".env" in str(findings["settings"].remedy)
    assert {each.state for name, each in findings.items() if name != "settings"} == {State.SKIPPED}


async def test_a_routing_file_with_a_fault_is_red_with_its_line(at_home: House, tmp_path: Path):
    (tmp_path / "signalbox.yaml").write_text("max_attempts: 3\nprofilse:\n  fast: [ollama]\n")
    findings = await at_home.look(config_file="signalbox.yaml")
    assert findings["settings"].said.startswith("signalbox.yaml:2: profilse is not known here")


async def test_a_profile_that_nobody_serves_is_red(at_home: House):
    findings = await at_home.look(profile_fast="gemini", gemini_api_key=None)
    assert red(findings) == ["routing"]
    assert "profile fast" in findings["routing"].said


async def test_a_url_that_is_none_is_one_red_line(at_home: House):
    findings = await at_home.look(database_url="mysql://me:d-secret-0123@host/name")
    assert red(findings) == ["settings"]
    assert "d-secret-0123" not in repr(findings)


# -- the database


async def _migrated(url: str, *statements: str, back_to: str | None = None) -> None:
    engine = build_engine(url, poolclass=NullPool)
    if back_to is not None:
        await downgrade(engine, back_to)
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(sa.text(statement))
    await engine.dispose()


async def test_a_server_without_tables_is_red(pg_empty_url: str, at_home: House):
    findings = await at_home.look(database_url=pg_empty_url)
    assert red(findings) == ["tables"]
    assert findings["tables"].remedy == "signalbox migrate"
    assert findings["rights"].state is State.SKIPPED


@pytest.mark.parametrize(("migrates", "state"), [("unset", State.WARNING), ("no", State.FAULT)])
async def test_a_file_that_is_not_there_is_not_made(
    at_home: House, tmp_path: Path, migrates: str, state: State
):
    auto = None if migrates == "unset" else False
    findings = await at_home.look(database_url="sqlite+aiosqlite:///new.db", auto_migrate=auto)
    assert findings["database"].state is state
    assert "signalbox migrate" in str(findings["database"].remedy)
    assert not (tmp_path / "new.db").exists()


async def test_older_and_newer_tables_are_red(at_home: House):
    url = at_home.given["database_url"]
    await _migrated(url, back_to="0001")
    older = await at_home.look(auto_migrate=False)
    await _migrated(url, "UPDATE alembic_version SET version_num = '9999'")
    newer = await at_home.look()
    assert (red(older), older["tables"].remedy) == (["tables"], "signalbox migrate")
    assert (red(newer), "upgrade signalbox" in str(newer["tables"].remedy)) == (["tables"], True)


async def test_a_database_that_is_away_is_red(at_home: House):
    url = "postgresql+asyncpg://me:d-secret-0123@127.0.0.1:1/name"
    findings = await at_home.look(database_url=url)
    assert red(findings) == ["database"]
    assert "LLM_DATABASE_URL" in str(findings["database"].remedy)
    assert {findings[name].state for name in ("tables", "clock", "rights")} == {State.SKIPPED}
    assert "d-secret-0123" not in repr(findings)


async def test_what_is_no_database_is_red(at_home: House, tmp_path: Path):
    (tmp_path / "odd.db").write_bytes(b"no database at all, but a text" * 100)
    findings = await at_home.look(database_url="sqlite+aiosqlite:///odd.db")
    assert "database" in red(findings)
    assert "restore it from a backup" in findings["database"].said


async def test_rights_that_are_missing_are_granted_by_the_remedy(pg_url: str, at_home: House):
    role = f"sb-reader-{new_id()[-8:]}"
    try:
        await _migrated(
            pg_url,
            f'CREATE ROLE "{role}" LOGIN',
            f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{role}"',
            f'REVOKE DELETE ON llm_runs FROM "{role}"',
        )
    except sa.exc.ProgrammingError as error:
        if isinstance(getattr(error.orig, "__cause__", None), asyncpg.InsufficientPrivilegeError):
            pytest.skip("this role may make no others")
        raise
    try:
        url = make_url(pg_url).set(username=role).render_as_string(hide_password=False)
        lacking = await at_home.look(database_url=url)
        assert red(lacking) == ["rights"]
        assert lacking["rights"].said == f'"{role}" lacks DELETE on llm_runs'
        remedy = str(lacking["rights"].remedy)
        await _migrated(pg_url, remedy.partition(": ")[2])
        assert red(await at_home.look(database_url=url)) == []
    finally:
        await _migrated(pg_url, f'DROP OWNED BY "{role}"', f'DROP ROLE "{role}"')


async def test_a_server_that_takes_no_writes_is_red(pg_empty_url: str, at_home: House):
    name = make_url(pg_empty_url).database
    await _migrated(pg_empty_url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    findings = await at_home.look(database_url=pg_empty_url)
    assert "takes no writes" in findings["database"].said
    assert "primary" in str(findings["database"].remedy)


@pytest.mark.parametrize(
    ("ahead_s", "state", "way"),
    [(90, State.FAULT, "behind"), (-90, State.FAULT, "ahead of"), (10, State.WARNING, "behind")],
)
async def test_a_clock_that_is_wrong_is_told(
    db_url: str, at_home: House, ahead_s: int, state: State, way: str
):
    findings = await looked({**at_home.given, "database_url": db_url}, clock=SkewedClock(ahead_s))
    assert (findings["clock"].state, way in findings["clock"].said) == (state, True)
    assert "NTP" in str(findings["clock"].remedy)
    assert red(findings) == (["clock"] if state is State.FAULT else [])


async def test_without_a_ledger_none_is_looked_at(at_home: House):
    findings = await at_home.look(persist_runs=False)
    assert findings["database"].said == "not used: LLM_PERSIST_RUNS=false"
    assert "tables" not in findings


# -- files


@pytest.mark.parametrize(
    ("left", "state"), [(10 * 2**20, State.FAULT), (500 * 2**20, State.WARNING), (2**40, State.OK)]
)
async def test_a_disk_without_room_is_told(at_home: House, left: int, state: State):
    findings = await looked(at_home.given, free=lambda _: left)
    assert findings["disk"].state is state
    assert red(findings) == (["disk"] if state is State.FAULT else [])
    if state is not State.OK:
        assert "signalbox prune" in str(findings["disk"].remedy)


async def test_a_fault_of_the_system_shows_no_key(at_home: House):
    def free(_: Path) -> int:
        raise OSError(f"the mount -o secret={KEY} is away")

    findings = await looked(at_home.given, free=free)
    assert red(findings) == ["disk"]
    assert "is away" in findings["disk"].said
    assert KEY not in repr(findings)


async def test_the_room_of_both_disks_counts(at_home: House, tmp_path: Path):
    (tmp_path / "spool").mkdir()
    free = {tmp_path: 2**40, tmp_path / "spool": 5 * 2**20}
    given = {**at_home.given, "spool_dir": tmp_path / "spool"}
    assert "5 MiB free" in (await looked(given, free=free.__getitem__))["disk"].said


async def test_directories_that_are_not_there_are_told(at_home: House, tmp_path: Path):
    (tmp_path / "file").write_text("")
    findings = await at_home.look(
        database_url="sqlite+aiosqlite:///nowhere/new.db", auto_migrate=True, spool_dir="file/spool"
    )
    assert red(findings) == ["permissions", "spool"]
    assert "mkdir -p" in str(findings["permissions"].remedy)
    assert "LLM_SPOOL_DIR" in str(findings["spool"].remedy)


async def test_a_spool_directory_is_not_made(at_home: House, tmp_path: Path):
    findings = await at_home.look(spool_dir=tmp_path / "deep" / "spool")
    assert findings["spool"].said.endswith("can be made")
    assert not (tmp_path / "deep").exists()


async def test_a_file_that_others_may_read_is_told(at_home: House, tmp_path: Path):
    (tmp_path / "test.db").chmod(0o644)
    findings = await at_home.look()
    assert (red(findings), findings["permissions"].state) == ([], State.WARNING)
    assert findings["permissions"].remedy == f"chmod 600 {tmp_path / 'test.db'}"


AS_NOBODY = """
import asyncio, json, os, sys
from app.diagnosis import files
from app.llm.settings import load_settings
settings = load_settings(**json.loads(sys.argv[1]))
if os.geteuid() == 0:  # whom permissions do not stop
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
told = []
asyncio.run(files.look(told.append, settings, files.free_bytes))
print(json.dumps({each.subject: [each.state, each.said, each.remedy] for each in told}))
"""


def as_nobody(**given: Any) -> dict[str, Any]:
    done = programs.run(
        [sys.executable, "-c", AS_NOBODY, json.dumps(given)],
        cwd=ROOT, capture_output=True, text=True, timeout=55, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A directory where another user can come, too."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("of_file", "of_folder", "said"),
    [(0o644, 0o777, "cannot be read and written"), (0o666, 0o555, "where SQLite keeps its log")],
    ids=["file", "directory"],
)
def test_what_may_only_be_read_is_red(
    sqlite_url: str, tmp_path: Path, open_folder: Path, of_file: int, of_folder: int, said: str
):
    file = Path(shutil.copy(tmp_path / "test.db", open_folder / "l.db"))
    (open_folder / "spool").mkdir()
    (open_folder / "spool").chmod(0o555)
    file.chmod(of_file)
    open_folder.chmod(of_folder)
    findings = as_nobody(database_url=f"sqlite+aiosqlite:///{file}", spool_dir=str(open_folder / "spool"))
    state, told, remedy = findings["permissions"]
    assert (state, said in told, "LLM_DATABASE_URL" in remedy) == ("fault", True, True)
    assert (findings["spool"][0], "LLM_SPOOL_DIR" in findings["spool"][2]) == ("fault", True)


# -- LiteLLM


async def test_a_litellm_that_does_not_fit_is_told(at_home: House, monkeypatch: pytest.MonkeyPatch):
    def unfit(*_: object) -> None:
        raise ValueError("wrote something else")

    monkeypatch.setattr(dialect, "_try_out", unfit)
    findings = await at_home.look()
    assert (findings["lane"].state, red(findings)) == (State.WARNING, [])
    assert "wrote something else" in findings["lane"].said
    assert "pip install litellm==" in str(findings["lane"].remedy)


@pytest.mark.parametrize(
    ("installed", "state"), [("1.82.7", State.FAULT), ("1.99.0", State.WARNING), ("1.105.3", State.OK)]
)
async def test_the_version_is_judged_by_what_this_package_asks_for(
    at_home: House, monkeypatch: pytest.MonkeyPatch, installed: str, state: State
):
    monkeypatch.setattr("app.diagnosis.library.version", lambda _: installed)
    findings = await at_home.look()
    assert (findings["LiteLLM"].state, installed in findings["LiteLLM"].said) == (state, True)


async def test_the_one_who_runs_out_of_time_is_the_only_one(at_home: House):
    """The looks go on at once: a provider that hangs does not keep the next one waiting."""
    silent = asyncio.Event()

    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        await silent.wait()
        return web.Response()

    listener = Listener(handle, name="silent")
    listener.start()
    try:
        findings = await looked({**at_home.given, "openai_api_base": str(listener.address)}, limit_s=1.0)
    finally:
        listener.close()
    assert red(findings) == ["openai"]
    assert "LLM_OPENAI_API_BASE" in str(findings["openai"].remedy)
