"""The wiring: what is refused at start, what is closed at the end, and what never leaves a settings object."""

from pathlib import Path
from typing import Any

import pytest

from app.bootstrap import build_llm_service, checked_url, database_name
from app.llm.client_litellm import LiteLLMClient
from app.llm.errors import LLMLedgerError, LLMSettingsError
from app.llm.settings import load_settings
from app.llm.testing.client import ScriptedClient
from tests.support.ledger import request, settings_for
from tests.support.service import service


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///x.db",
        "postgresql://u@h/d",
        "postgresql+psycopg://u@h/d",
        "mysql+aiomysql://u@h/d",
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite:///file::memory:?uri=true",
        "not a url",
    ],
)
async def test_a_url_that_no_ledger_can_live_in_is_refused_by_its_variable(url: str):
    with pytest.raises(LLMSettingsError, match="LLM_DATABASE_URL"):
        async with service(url):
            pass


def test_a_password_of_the_database_is_never_shown():
    """I17."""
    settings = settings_for("postgresql+asyncpg://u:secret-word@h/d")
    assert "secret-word" not in database_name(settings)
    assert "secret-word" not in repr(settings)
    assert "secret-word" in checked_url(settings)
    with pytest.raises(LLMSettingsError) as caught:
        checked_url(settings_for("postgresql+nothing://u:secret-word@h/d"))
    assert "secret-word" not in str(caught.value)


async def test_settings_come_from_the_environment_when_none_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LLM_DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path / 'env.db'}")
    monkeypatch.setenv("LLM_DEFAULT_WORKSPACE", "w9")
    async with build_llm_service(client=ScriptedClient()) as llm:
        assert (await llm.chat(request())).text == "answer 1"
    assert (tmp_path / "env.db").exists()


def test_the_shells_settings_and_the_users_env_file_are_hidden_from_the_tests():
    settings = load_settings()
    assert settings.gemini_api_key is None
    assert settings.default_workspace is None


async def test_the_real_client_is_wired_without_being_loaded_by_the_import(sqlite_url: str):
    async with build_llm_service(settings_for(sqlite_url)) as llm:
        assert isinstance(llm._wiring.client, LiteLLMClient)


async def test_an_error_inside_the_block_still_closes_everything(sqlite_url: str):
    client = ScriptedClient()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with service(sqlite_url, client) as llm:
            await llm.chat(request())
            _ = 1 / 0
    assert client.closed


async def test_a_start_that_fails_leaves_no_connection_open(pg_empty_url: str):
    """An open one would be warned about when it is collected."""
    for _ in range(2):
        with pytest.raises(LLMLedgerError):
            async with service(pg_empty_url):
                pass


@pytest.mark.parametrize("persist", [True, False])
async def test_without_persistence_no_file_is_made(tmp_path: Path, *, persist: bool):
    file: Any = tmp_path / "ledger.db"
    async with service(f"sqlite+aiosqlite:///{file}", persist_runs=persist) as llm:
        await llm.chat(request())
    assert file.exists() is persist
