"""Settings: where a value comes from, and how a wrong one is refused."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from app.bootstrap import database_name
from app.llm.endpoints import header_pairs, is_local_host
from app.llm.errors import LLMSettingsError
from app.llm.fields.meanings import meanings
from app.llm.settings import LLMSettings, isolated_settings, load_settings
from app.llm.types import LLMProfile


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variables, and no `.env` in the working directory."""
    for name in [name for name in os.environ if name.startswith(("LLM_", "GEMINI_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_without_any_variable_the_defaults_fit_together():
    settings = load_settings()
    assert settings.default_profile is LLMProfile.BALANCED
    assert settings.profile(LLMProfile.FAST) == ("ollama:llama3.2", "gemini:gemini-2.5-flash")
    assert not settings.cache_enabled


def test_an_argument_beats_the_environment_which_beats_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / ".env").write_text("LLM_MAX_ATTEMPTS=3\nLLM_OLLAMA_MODEL=from-file\nOTHER=ignored\n")
    monkeypatch.setenv("LLM_MAX_ATTEMPTS", "5")
    assert load_settings().max_attempts == 5
    assert load_settings(max_attempts=7).max_attempts == 7
    assert load_settings().ollama_model == "from-file"


def test_the_key_of_gemini_is_read_under_both_names_and_ours_wins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GEMINI_API_KEY", "theirs")
    assert load_settings().gemini_api_key == SecretStr("theirs")
    monkeypatch.setenv("LLM_GEMINI_API_KEY", "ours")
    assert load_settings().gemini_api_key == SecretStr("ours")


def test_a_profile_is_a_comma_list_with_bare_providers_filled_in(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLM_PROFILE_FAST", " gemini:x , ollama, ollama:llama3.2 ,")
    assert load_settings().profile(LLMProfile.FAST) == ("gemini:x", "ollama:llama3.2")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_attempts": 0}, "LLM_MAX_ATTEMPTS=0: Input should be greater than or equal to 1"),
    ({"default_timeout_s": "soon"}, "LLM_DEFAULT_TIMEOUT_S='soon': Input should be a valid number"),
    ({"router_policy": "x"}, "LLM_ROUTER_POLICY='x': Input should be 'as_listed', 'local_first' or 'cloud_first'"),
    ({"profile_fast": "mistral"}, "LLM_PROFILE_FAST='mistral': 'mistral' is not `provider:model` or a provider of ollama, gemini"),
    ({"profile_fast": "ollama:"}, "LLM_PROFILE_FAST='ollama:': 'ollama:' is not `provider:model`"),
    ({"profile_fast": "ollama:ollama/x"}, "LLM_PROFILE_FAST='ollama:ollama/x': a model is named provider:model"),
    ({"ollama_model": "../x"}, "LLM_OLLAMA_MODEL='../x': a model is named provider:model"),
    ({"gemini_model": "a b"}, "LLM_GEMINI_MODEL='a b': a model is named provider:model"),
    ({"profile_advanced": ""}, "LLM_PROFILE_ADVANCED='': at least one candidate, e.g. ollama,gemini"),
    ({"fallback_on": "auth,nope"}, "LLM_FALLBACK_ON='auth,nope': 'nope' is not one of auth, model_not_found, content_filtered"),
    ({"ollama_api_base": "localhost"}, "LLM_OLLAMA_API_BASE='localhost': must be a URL such as http://localhost:11434"),
    ({"ollama_api_base": "http://h:99999"}, "LLM_OLLAMA_API_BASE='http://h:99999': must be a URL such as"),
    ({"ollama_api_base": "http://u:pw@h"}, "LLM_OLLAMA_API_BASE='http://********@h': must not hold a user or password"),
    ({"ollama_api_base": "http://u:p@w/x@h"}, "LLM_OLLAMA_API_BASE='http://********@h': must"),
    ({"gemini_api_base": "https://h/v1"}, "LLM_GEMINI_API_BASE='https://h/v1': must end in /v1beta"),
    ({"ca_bundle": "nowhere.pem"}, "LLM_CA_BUNDLE='nowhere.pem': no such file"),
    ({"lease_grace_s": 9.0}, "LLM_LEASE_GRACE_S=9: must be at least twice LLM_FINISH_BUDGET_S=5"),
    ({"cache_enabled": True, "store_payloads": "hash"}, "LLM_CACHE_ENABLED=true: needs LLM_STORE_PAYLOADS=full, not hash"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_wrong_value_is_refused_by_variable_value_and_remedy(values: dict[str, Any], message: str):
    with pytest.raises(LLMSettingsError) as caught:
        load_settings(**values)
    assert caught.value.message.startswith(message)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [("LLM_OLLAMA_HEADERS", "no-colon-in-this-secret"), ("LLM_OLLAMA_HEADERS", "X-Key: secret\x07")],
)
def test_a_wrong_secret_is_masked(monkeypatch: pytest.MonkeyPatch, variable: str, value: str):
    monkeypatch.setenv(variable, value)
    with pytest.raises(LLMSettingsError) as caught:
        load_settings()
    assert f"{variable}=********: headers are written as" in caught.value.message
    assert "secret" not in caught.value.message


def test_every_wrong_value_is_named_at_once():
    with pytest.raises(LLMSettingsError) as caught:
        load_settings(max_attempts=0, concurrency_limit="many")
    assert "LLM_MAX_ATTEMPTS=0" in caught.value.message
    assert "LLM_CONCURRENCY_LIMIT='many'" in caught.value.message


def test_no_secret_shows_in_a_repr():
    settings = load_settings(
        gemini_api_key="g-secret",
        ollama_api_key="o-secret",
        ollama_headers="X-A: h-secret",
        database_url="postgresql+asyncpg://me:d-secret@host/name",
    )
    assert "-secret" not in f"{settings!r} {settings} {settings.model_dump()}"


def test_settings_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().max_attempts = 9


def test_every_setting_says_what_it_means():
    assert LLMSettings.model_fields.keys() == meanings(LLMSettings).keys()


def test_a_base_loses_its_trailing_slash():
    assert load_settings(ollama_api_base="http://h:1/x/").ollama_api_base == "http://h:1/x"


def test_headers_are_pairs_separated_by_semicolons():
    assert header_pairs(SecretStr("X-A: b ; X-Url: http://h:1;")) == {"X-A": "b", "X-Url": "http://h:1"}
    assert header_pairs(None) == {}


@pytest.mark.parametrize("text", [": b", "X A: b", "X-A b", "X-A: b\nX-C: d", "X-Ä: b"])
def test_headers_that_could_break_a_request_are_refused(text: str):
    with pytest.raises(ValueError, match="headers are written as"):
        header_pairs(SecretStr(text))


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "::1", "[::1]", "0:0:0:0:0:0:0:1"])
def test_a_local_host_is_recognised_in_every_spelling(host: str):
    assert is_local_host(host, ("localhost", "127.0.0.1", "::1"))


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost.example", "example", ""])
def test_another_host_is_not_local(host: str):
    assert not is_local_host(host, ("localhost", "127.0.0.1", "::1"))


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLM_SPOOL_DIR", "")
    monkeypatch.setenv("LLM_IDEMPOTENCY_TTL_S", "")
    assert (load_settings().spool_dir, load_settings().idempotency_ttl_s) == (None, None)


def test_isolated_settings_read_no_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLM_MAX_ATTEMPTS", "9")
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    settings = isolated_settings(ollama_model="qwen3")
    assert (settings.max_attempts, settings.gemini_api_key, settings.ollama_model) == (4, None, "qwen3")


def test_every_secret_is_known_to_the_redactor():
    settings = isolated_settings(
        gemini_api_key="g-secret",
        ollama_headers="X-Key: h-secret",
        database_url="postgresql+asyncpg://u:p%40ss@h/db",
    )
    assert {"g-secret", "h-secret", "p%40ss", "p@ss"} < set(settings.secrets())


def test_a_near_miss_of_a_variable_is_refused_and_others_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLM_USER_PATH", "/of/another/program")
    load_settings()
    monkeypatch.setenv("LLM_OLAMA_MODEL", "qwen3")
    with pytest.raises(LLMSettingsError, match="LLM_OLAMA_MODEL is no setting: LLM_OLLAMA_MODEL was meant"):
        load_settings()


def test_a_password_in_the_query_of_a_database_url_is_a_secret_too():
    settings = isolated_settings(database_url="postgresql+asyncpg://u@h/db?password=s3cret")
    assert "s3cret" in settings.secrets()
    assert "s3cret" not in database_name(settings)


@pytest.mark.parametrize("value", ["", ",", "  ", " , "])
def test_a_payload_key_that_holds_none_is_refused_wherever_it_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
):
    """What was meant to be encrypted would be stored as plain text."""
    refused = pytest.raises(LLMSettingsError, match=r"^LLM_PAYLOAD_KEY=.*is set and holds no key")
    with refused:
        isolated_settings(payload_key=value)
    (tmp_path / ".env").write_text(f"LLM_PAYLOAD_KEY={value}\n")
    with refused:
        load_settings()
    assert load_settings(_env_file=None).payload_key is None
    (tmp_path / ".env").unlink()
    monkeypatch.setenv("llm_payload_key", value)
    with refused:
        load_settings()
