"""I17: what the settings keep secret is in no log line, row, spool, repr, traceback or exception chain."""

import base64
import json
import logging
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from app.bootstrap import build_llm_service, checked_url
from app.llm.errors import LLMError, LLMLedgerUnavailable, LLMProviderError, LLMSettingsError
from app.llm.redaction import Redactor
from app.llm.settings import isolated_settings, load_settings
from app.llm.telemetry import Telemetry
from app.llm.testing import Reply
from app.llm.testing.client import ScriptedClient
from tests.security.looks import KEY, chain, in_rows, on_disk, told_by
from tests.security.services import Stubs, cut_from_its_database, wired
from tests.support.ledger import GEMINI_KEY, Outside, request, settings_for
from tests.support.service import service

TOKEN = "tok/en+of=the&proxy-0123"  # noqa: S105  # nobody's
HEADER = 'he"ad\\er-val ue-4567'
BASIC = base64.b64encode(b"user:pass word!").decode()
SECRETS = (GEMINI_KEY, TOKEN, HEADER, BASIC, KEY)
CONFIGURED: dict[str, Any] = {
    "ollama_api_key": TOKEN,
    "ollama_headers": f"X-Proxy: {HEADER}; X-Login: Basic {BASIC}",
    "payload_key": KEY,
    "max_attempts": 1,
}
ECHO = " | ".join(
    f"{each} {quote(each, safe='')} {quote(each)} {json.dumps(each)} Bearer {each}" for each in SECRETS
)
PROVIDERS = ("ollama:first", "gemini:second")


def assert_free(text: str | bytes) -> None:
    """Look for every secret, as it is and as URLs and JSON spell it."""
    whole = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    for secret in SECRETS:
        for spelled in (secret, quote(secret, safe=""), quote(secret), json.dumps(secret)[1:-1]):
            assert spelled.encode() not in whole


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("status", [400, 401, 500])
async def test_a_provider_that_echoes_every_secret_spreads_none(  # noqa: PLR0913, PLR0917  # fixtures
    db_url: str, outside: Outside, stubs: Stubs, tmp_path: Path, caplog: Any, capfd: Any, name: str, status: int
):  # fmt: skip
    caplog.set_level(logging.DEBUG)
    stubs.of(name).script(Reply.status(status, message=ECHO))
    async with wired(db_url, stubs, log_content=True, **CONFIGURED) as llm:
        with pytest.raises(LLMProviderError) as caught:
            await llm.chat(request(model=name))
        shown = f"{llm!r} {vars(llm)!r} {vars(llm._wiring.client)!r} {llm.explain(request())!r}"
    assert_free(told_by(caught.value) + shown)
    assert_free(caplog.text + "".join(capfd.readouterr()))
    assert_free(await in_rows(outside) + on_disk(tmp_path))
    assert "[redacted]" in (await outside.runs())[0]["error_message"]


@pytest.mark.parametrize("before", [284, 290])
async def test_a_secret_at_the_end_of_what_is_quoted_is_not_cut_in_half(
    sqlite_url: str, stubs: Stubs, before: int
):
    stubs.gemini.script(Reply.status(400, message="x" * before + " " + GEMINI_KEY))
    async with wired(sqlite_url, stubs, **CONFIGURED) as llm:
        with pytest.raises(LLMProviderError) as caught:
            await llm.chat(request(model="gemini:second"))
    assert GEMINI_KEY[:6] not in told_by(caught.value)


@pytest.mark.parametrize("name", PROVIDERS)
async def test_what_was_sent_did_hold_them(sqlite_url: str, stubs: Stubs, name: str):
    """The test above looks for something that exists."""
    async with wired(sqlite_url, stubs, **CONFIGURED) as llm:
        await llm.chat(request(model=name))
    headers = stubs.of(name).requests[-1].headers
    if name == PROVIDERS[0]:
        assert (headers["authorization"], headers["x-proxy"]) == (f"Bearer {TOKEN}", HEADER)
        assert headers["x-login"] == f"Basic {BASIC}"
    else:
        assert headers["x-goog-api-key"] == GEMINI_KEY


@pytest.mark.parametrize(
    "fault", [Reply.reset(), Reply.garbage(), Reply.redirect("http://x/?key=" + GEMINI_KEY)]
)
@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_broken_connection_or_answer_tells_no_secret(
    sqlite_url: str, stubs: Stubs, caplog: Any, name: str, fault: Reply
):
    stubs.of(name).script(fault)
    async with wired(sqlite_url, stubs, **CONFIGURED) as llm:
        with pytest.raises(LLMProviderError) as caught:
            await llm.chat(request(model=name))
    assert_free(told_by(caught.value) + caplog.text)
    assert list(chain(caught.value)) == [caught.value], "nothing hangs on it that leads to the request"


async def test_a_spool_holds_no_secret_of_a_failure(db_url: str, stubs: Stubs, tmp_path: Path):
    stubs.ollama.script(Reply.status(400, message=ECHO))
    settings = {**CONFIGURED, "finish_budget_s": 0.05, "spool_dir": tmp_path, "log_content": True}
    async with wired(db_url, stubs, **settings) as llm:
        cut_from_its_database(llm)
        with pytest.raises(LLMProviderError):
            await llm.chat(request(model=PROVIDERS[0]))
        spooled = on_disk(tmp_path)
    assert b'"status":"FAILED"' in spooled
    assert_free(spooled)


async def test_a_preview_of_prompt_and_answer_in_the_log_is_redacted(
    sqlite_url: str, stubs: Stubs, caplog: Any
):
    caplog.set_level(logging.INFO)
    stubs.ollama.script(Reply.text(ECHO))
    async with wired(sqlite_url, stubs, log_content=True, **CONFIGURED) as llm:
        await llm.chat(request(f"hello {ECHO}", model=PROVIDERS[0]))
    assert "hello" in caplog.text
    assert_free(caplog.text)


@pytest.mark.parametrize(("variable", "value"), [
    ("LLM_OLLAMA_HEADERS", "sesame-4711"),
    ("LLM_PAYLOAD_KEY", "sesame-4711"),
    ("LLM_OLLAMA_API_BASE", "http://me:sesame-4711@host"),
    ("LLM_GEMINI_API_BASE", "https://sesame-4711@host/v1beta"),
])  # fmt: skip
def test_a_refused_setting_shows_no_secret_of_any_other(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
):
    monkeypatch.setenv("LLM_OLLAMA_API_KEY", "sesame-4712")
    monkeypatch.setenv("LLM_DATABASE_URL", "postgresql+asyncpg://me:sesame-4713@host/name")
    monkeypatch.setenv(variable, value)
    with pytest.raises(LLMSettingsError) as caught:
        load_settings()
    assert "sesame" not in told_by(caught.value)
    assert variable in caught.value.message


KEY_IN_FILE = {
    "a.yaml": "providers:\n  gemini: {api_key: sesame-4711}\n  ollama:\n    headers: 'X-Key: ${HELD}'\n",
    "a.toml": "providers.gemini.api_key = 'sesame-4711'\nproviders.ollama.headers = 'X-Key: ${HELD}'\n",
}
FAULTS = {
    "a.yaml": (
        "max_attempts: 0", "nobody: sesame-4714", "max_attempts: [sesame-4714", "fallback: ${NOWHERE}", "x: &a [*a, sesame-4714]",
        "max_attempts: {a: sesame-4714}", "stages: sesame-4714", "payload_key: sesame-4714", "cache_enabled: !x sesame-4714",
    ),
    "a.toml": ("max_attempts = 0", "nobody = 'sesame-4714'", "max_attempts = ['sesame-4714'", "payload_key = 'sesame-4714'"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, faults in FAULTS.items() for fault in faults]
)
def test_a_fault_in_a_routing_file_shows_no_secret_of_it(
    monkeypatch: pytest.MonkeyPatch, name: str, fault: str
):
    monkeypatch.setenv("HELD", "sesame-4712")
    monkeypatch.setenv("LLM_CONFIG_FILE", name)
    Path(".env").write_text("HELD_TOO=sesame-4713\n")
    Path(name).write_text(f"{KEY_IN_FILE[name]}{fault}\n")
    with pytest.raises(LLMSettingsError) as caught:
        load_settings()
    assert "sesame" not in told_by(caught.value)
    assert f"{name}:" in caught.value.message


@pytest.mark.parametrize("url", [
    "sesame-4711", "mysql://me:sesame-4711@host/name", "sqlite+aiosqlite://me:sesame-4711@/:memory:",
])  # fmt: skip
def test_a_refused_database_url_shows_no_password(url: str):
    with pytest.raises(LLMSettingsError) as caught:
        checked_url(settings_for(url))
    assert "sesame" not in f"{caught.value!r} {caught.value.args} {vars(caught.value)}"
    assert all("sesame" not in f"{one!r} {vars(one)}" for one in chain(caught.value))


async def test_a_database_that_is_away_shows_no_password(monkeypatch: pytest.MonkeyPatch, caplog: Any):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("LLM_DATABASE_URL", "postgresql+asyncpg://me:sesame-4711@127.0.0.1:1/name")
    with pytest.raises(LLMLedgerUnavailable) as caught:
        async with build_llm_service(client=ScriptedClient()):
            pass
    assert "sesame" not in told_by(caught.value) + caplog.text


async def test_a_defect_of_a_client_is_recorded_without_its_words(db_url: str, outside: Outside, caplog: Any):
    def defective(*_: Any) -> Any:
        raise RuntimeError(ECHO)

    async with service(db_url, ScriptedClient([defective]), **CONFIGURED) as llm:
        with pytest.raises(LLMError) as caught:
            await llm.chat(request())
    assert_free(f"{caught.value!r} {vars(caught.value)!r} {caplog.text}")
    assert_free(await in_rows(outside))


def test_a_redactor_knows_every_spelling_of_a_secret():
    assert_free(Redactor(secrets=isolated_settings(gemini_api_key=GEMINI_KEY, **CONFIGURED).secrets())(ECHO))


def test_objects_that_hold_secrets_do_not_show_them():
    settings = settings_for("sqlite+aiosqlite:///x.db", **CONFIGURED)
    redactor = Redactor(secrets=settings.secrets())
    assert_free(
        f"{settings!r} {settings} {settings.model_dump()} {redactor!r} {Telemetry(redactor=redactor)!r}"
    )
    assert_free(settings.model_dump_json())
