"""The catalog: what the settings list, under which identity, and who may be pinned beside it."""

import dataclasses
import os
from typing import Any

import pytest

from app.llm.errors import LLMInvalidRequest
from app.llm.providers import PROVIDERS, Catalog
from app.llm.router import PROVIDER_CAPABILITIES
from app.llm.settings import LLMSettings
from app.llm.types import LLMProfile, LLMProvider


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("LLM_", "GEMINI_"))]:
        monkeypatch.delenv(name)


def catalog(**values: Any) -> Catalog:
    return Catalog.from_settings(LLMSettings(_env_file=None, **values))


def test_a_profile_lists_what_the_settings_list_in_that_order():
    shown = catalog(
        profile_fast="gemini:g1,ollama,ollama:tiny:1b", ollama_model="llama3.2:3b", profile_advanced="gemini"
    )
    assert [c.name for c in shown.listed(LLMProfile.FAST)] == [
        "gemini:g1",
        "ollama:llama3.2:3b",
        "ollama:tiny:1b",
    ]
    assert [c.name for c in shown.unlisted(LLMProfile.ADVANCED)] == [
        "gemini:g1",
        "ollama:llama3.2:3b",
        "ollama:tiny:1b",
    ]


def test_all_holds_each_candidate_once_as_the_same_object():
    shown = catalog(profile_fast="ollama:a,gemini:b", profile_balanced="gemini:b,ollama:c")
    assert [c.name for c in shown.all][:3] == ["ollama:a", "gemini:b", "ollama:c"]
    assert len({c.name for c in shown.all}) == len(shown.all)
    assert all(any(c is known for known in shown.all) for p in LLMProfile for c in shown.listed(p))


def test_a_pinned_name_is_split_at_its_first_colon():
    pinned = catalog().pinned("ollama:llama3.2:3b")
    assert (pinned.provider, pinned.model) == (LLMProvider.OLLAMA, "llama3.2:3b")


def test_a_listed_candidate_is_pinned_as_it_is_listed():
    shown = catalog(profile_fast="ollama:a")
    assert shown.pinned("ollama:a") is shown.listed(LLMProfile.FAST)[0]


@pytest.mark.parametrize("name", ["mistral:large", "llama3.2", "ollama:", ":m", ""])
def test_a_name_of_no_known_provider_is_refused_with_the_known_ones(name: str):
    with pytest.raises(LLMInvalidRequest, match="one of ollama, gemini"):
        catalog().pinned(name)


@pytest.mark.parametrize("provider", sorted(set(LLMProvider) - {LLMProvider.OLLAMA}))
def test_a_provider_that_wants_a_key_is_usable_only_with_it(provider: str):
    assert not catalog().pinned(f"{provider}:g").usable
    assert not catalog(**{f"{provider}_api_key": ""}).pinned(f"{provider}:g").usable
    assert catalog(**{f"{provider}_api_key": "k"}).pinned(f"{provider}:g").usable


def test_ollama_needs_no_key():
    assert catalog().pinned("ollama:m").usable


@pytest.mark.parametrize("provider", ["openai", "anthropic", "groq"])
def test_a_server_of_ones_own_that_speaks_as_they_do_is_local(provider: str):
    assert not catalog().pinned(f"{provider}:m").local
    assert catalog(**{f"{provider}_api_base": "http://localhost:8000/v1"}).pinned(f"{provider}:m").local


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("openai:gpt-5-mini-2025-08-07", 272_000),
        ("openai:gpt-4.1", 1_047_576),
        ("groq:openai/gpt-oss-20b", 131_072),
        ("anthropic:claude-haiku-4-5-20251001", 200_000),
    ],
)
def test_a_window_is_known_by_the_name_before_the_date(name: str, tokens: int):
    assert (catalog().pinned(name).caps.max_context_tokens, catalog().pinned(name).caps.assumed) == (
        tokens,
        False,
    )


@pytest.mark.parametrize(("model", "able"), [("gpt-5.2", True), ("gpt-5.4", False), ("gpt-6-sol", False)])
def test_models_that_openai_serves_with_tools_elsewhere_call_none(model: str, able):
    assert catalog().pinned(f"openai:{model}").caps.supports_tools is able


def test_what_is_learned_makes_another_catalog():
    before = catalog(profile_fast="ollama:a,ollama:b")
    name = "ollama:a"
    caps = before.pinned(name).caps.model_copy(update={"supports_tools": False})
    after = before.with_caps(name, caps).with_caps("ollama:unlisted", caps)
    assert before.pinned(name).caps.supports_tools
    assert not after.listed(LLMProfile.FAST)[0].caps.supports_tools
    assert not after.pinned("ollama:unlisted").caps.supports_tools
    assert after.pinned("ollama:b") == before.pinned("ollama:b")
    assert after.pinned(name).identity == before.pinned(name).identity


def test_a_catalog_is_immutable_and_shows_no_secret():
    shown = catalog(gemini_api_key="a-secret-key")
    with pytest.raises(dataclasses.FrozenInstanceError):
        shown.all = ()  # type: ignore[misc]
    assert "a-secret-key" not in repr(shown)


@pytest.mark.parametrize(
    "values",
    [
        {"ollama_api_base": "http://LOCALHOST:11434/"},
        {"ollama_api_key": "k", "ollama_headers": "X-A: b", "ollama_keep_alive": "5m"},
        {"default_timeout_s": 5, "local_hosts": "elsewhere", "ollama_model": "other"},
    ],
)
def test_settings_that_change_no_answer_change_no_identity(values: dict[str, Any]):
    assert catalog(**values).pinned("ollama:m").identity == catalog().pinned("ollama:m").identity


@pytest.mark.parametrize("values", [{"ollama_num_ctx": 4096}, {"ollama_api_base": "http://localhost:11435"}])
def test_settings_that_can_change_an_answer_change_the_identity(values: dict[str, Any]):
    assert catalog(**values).pinned("ollama:m").identity != catalog().pinned("ollama:m").identity


def test_an_unknown_model_has_the_assumed_capabilities_of_its_provider():
    assert set(PROVIDER_CAPABILITIES) == set(PROVIDERS) == set(LLMProvider)
    for provider, assumed in PROVIDER_CAPABILITIES.items():
        assert assumed.assumed
        assert catalog().pinned(f"{provider}:nobody-knows-me").caps == assumed


def test_a_model_of_the_tables_is_not_assumed():
    assert not catalog().pinned("gemini:gemini-2.5-flash").caps.assumed
    assert not catalog().pinned("ollama:llama3.2:3b").caps.assumed
