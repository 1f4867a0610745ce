"""A schema that a candidate cannot be told in full: simplified, routed elsewhere or refused, as the settings say."""

import os
from typing import Any

import pytest

from app.llm.candidates import RouteDecision
from app.llm.errors import LLMSchemaMismatch
from app.llm.fingerprint import prompt_sha256, request_sha256
from app.llm.messages import Message, ResponseFormat, ToolSpec
from app.llm.needs import needs_of
from app.llm.providers import Catalog, gemini, ollama
from app.llm.router import LLMRouter, no_candidate
from app.llm.settings import LLMSettings
from app.llm.types import LLMConstraints, LLMProvider, LLMRequest, RequestVariant

LLAMA, FLASH = "ollama:llama3.2", "gemini:gemini-2.5-flash"
SHORT = {"type": "object", "properties": {"a/b": {"type": "string", "maxLength": 3}}}
"""Ollama's grammar can say it, Gemini's JSON schema cannot; of tools it is the other way round."""
PLAIN = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("LLM_", "GEMINI_"))]:
        monkeypatch.delenv(name)


def ask(schema: dict[str, Any] | None = None, *parameters: dict[str, Any], **rest: Any) -> LLMRequest:
    form = None if schema is None else ResponseFormat.of_schema(schema)
    tools = tuple(ToolSpec(name=f"t{n}", parameters=each) for n, each in enumerate(parameters))
    return LLMRequest(messages=(Message.user("x"),), response_format=form, tools=tools, **rest)


def routed(request: LLMRequest, **values: Any) -> RouteDecision:
    settings = LLMSettings(_env_file=None, **{"gemini_api_key": "key", **values})
    router = LLMRouter.from_settings(settings)
    return router.route(request, caps=Catalog.from_settings(settings))


def reasons(route: RouteDecision) -> dict[str, str]:
    return {entry.candidate.name: entry.reason.value for entry in route.entries}


def test_by_default_it_is_simplified_and_everybody_stays():
    route = routed(ask(SHORT, SHORT))
    assert [candidate.name for candidate in route.kept] == [LLAMA, FLASH]
    assert route.needs.losses == ()


@pytest.mark.parametrize(
    ("request_", "excluded", "detail"),
    [
        (ask(SHORT), FLASH, {"schema": "response_format", "path": "/properties/a~1b", "keyword": "maxLength", "losses": 1}),
        (ask(None, PLAIN, SHORT), LLAMA, {"schema": "tools/t1", "path": "/properties/a~1b", "keyword": "maxLength", "losses": 1}),
    ],
)  # fmt: skip
def test_routed_elsewhere_the_candidate_is_excluded_with_place_and_keyword(
    request_: LLMRequest, excluded: str, detail: dict[str, Any]
):
    route = routed(request_, schema_mismatch="route")
    assert [entry.candidate.name for entry in route.entries if not entry.kept] == [excluded]
    entry = route.entries[-1]
    assert (entry.reason.value, entry.detail) == ("schema_mismatch", detail)
    assert route.summary()[-1]["detail"] == detail


def test_a_schema_that_both_can_be_told_excludes_nobody():
    route = routed(ask(PLAIN, PLAIN), schema_mismatch="route")
    assert set(reasons(route).values()) == {"listed"}


def test_where_nobody_can_be_told_the_error_names_each_place():
    route = routed(ask(SHORT, SHORT), schema_mismatch="route")
    assert route.kept == ()
    told = no_candidate(route).message
    assert "ollama:llama3.2: cannot be told 'maxLength' at #/properties/a~1b of tools/t0, 1 losses" in told
    assert (
        "gemini:gemini-2.5-flash: cannot be told 'maxLength' at #/properties/a~1b of response_format" in told
    )


def test_a_longer_prompt_changes_nothing_about_it():
    """Routes of short prompts are remembered; those of long ones are made anew."""
    long = ask(SHORT).model_copy(update={"messages": (Message.user("x" * 3 * 8000),)})
    assert reasons(routed(long, schema_mismatch="route")) == {
        LLAMA: "context_too_small",
        FLASH: "schema_mismatch",
    }


def test_equal_requests_but_for_the_schema_have_routes_of_their_own():
    assert len(routed(ask(SHORT), schema_mismatch="route").kept) == 1
    assert len(routed(ask(PLAIN), schema_mismatch="route").kept) == 2
    assert len(routed(ask(SHORT), schema_mismatch="simplify").kept) == 2


def test_refused_the_call_ends_with_place_and_keyword():
    with pytest.raises(LLMSchemaMismatch) as caught:
        routed(ask(SHORT), schema_mismatch="error")
    facts = {
        "provider": "gemini",
        "schema": "response_format",
        "path": "/properties/a~1b",
        "keyword": "maxLength",
    }
    assert caught.value.facts.items() >= facts.items()
    assert f"{FLASH} cannot be told 'maxLength' at #/properties/a~1b" in caught.value.message
    assert (caught.value.code, caught.value.retryable, caught.value.fallback) == (
        "schema_mismatch",
        False,
        False,
    )


def test_a_candidate_that_is_not_asked_refuses_nothing():
    assert routed(ask(SHORT, model=LLAMA), schema_mismatch="error").kept[0].name == LLAMA
    only = LLMConstraints(providers=(LLMProvider.OLLAMA,))
    assert len(routed(ask(SHORT, constraints=only), schema_mismatch="error").kept) == 1


def test_the_variant_of_a_provider_is_what_counts():
    variant = RequestVariant(messages=(Message.user("x"),), response_format=ResponseFormat.of_schema(PLAIN))
    request = ask(SHORT, variants={LLMProvider.GEMINI: variant})
    assert len(routed(request, schema_mismatch="route").kept) == 2


@pytest.mark.parametrize(
    "model", ["gemini-2.0-flash", "gemini-2.5-pro", "gemini-3-flash-preview", "gemini-10-x"]
)
def test_gemini_models_with_a_number_take_json_schema(model: str):
    assert gemini.dialects(model).answer == "gemini_json_schema"


@pytest.mark.parametrize("model", ["gemini-flash-latest", "gemini-1.5-pro", "gemma-3-27b-it"])
def test_others_take_what_litellm_sends_them(model: str):
    assert gemini.dialects(model).answer == "gemini_openapi"


def test_the_fingerprint_is_that_of_the_request_as_it_was_made():
    request = ask(SHORT, SHORT)
    before = prompt_sha256(request), request_sha256(request)
    settings = LLMSettings(_env_file=None, gemini_api_key="key")
    for provider, model in ((ollama, "llama3.2"), (gemini, "gemini-2.5-flash")):
        provider.call_options(settings, model, request)
    assert (prompt_sha256(request), request_sha256(request)) == before
    assert prompt_sha256(request) != prompt_sha256(ask(PLAIN, SHORT))


def test_what_copies_of_definitions_add_to_a_tool_is_estimated():
    defs = {"A": {"type": "object", "properties": {f"property_{n}": {"type": "string"} for n in range(50)}}}
    used = {f"p{n}": {"$ref": "#/$defs/A"} for n in range(20)}
    tool = {"type": "object", "properties": used, "$defs": defs}
    sent = ollama.call_options(LLMSettings(_env_file=None), "llama3.2", ask(None, tool))["tools"]
    assert (
        needs_of(ask(None, tool)).input_tokens_estimate
        > len(str(sent)) / 4
        > needs_of(ask(tool)).input_tokens_estimate
    )
