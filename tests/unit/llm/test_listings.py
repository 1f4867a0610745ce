"""How each provider is asked which models it has, and how its answer is read."""

from typing import Any, ClassVar

import pytest

from app.llm.providers import PROVIDERS, OwnProvider, known
from app.llm.providers.ollama_says import progress_of
from app.llm.settings import isolated_settings
from app.llm.types import LLMProvider

KEY = "key-0123456789"
SETTINGS = isolated_settings(**{f"{name}_api_key": KEY for name in PROVIDERS})


@pytest.mark.parametrize(
    ("provider", "path", "header"),
    [
        ("ollama", "/api/tags", "Authorization"),
        ("gemini", "/v1beta/models?pageSize=1000", "x-goog-api-key"),
        ("openai", "/v1/models", "Authorization"),
        ("anthropic", "/v1/models?limit=1000", "x-api-key"),
        ("groq", "/openai/v1/models", "Authorization"),
    ],
)
def test_a_provider_is_asked_with_its_key_which_shows_nowhere(provider: str, path: str, header: str):
    inquiry = known()[LLMProvider(provider)].listing(SETTINGS)
    assert inquiry is not None
    assert inquiry.url.endswith(path)
    assert inquiry.headers[header].removeprefix("Bearer ") == KEY
    assert KEY not in inquiry.url + repr(inquiry)


@pytest.mark.parametrize(
    ("provider", "entry", "names", "window"),
    [
        ("ollama", {"name": "a:latest"}, ("a:latest", "a"), None),
        ("ollama", {"name": "hf.co/a/b:q4"}, ("hf.co/a/b:q4",), None),
        (
            "gemini",
            {"name": "models/g", "inputTokenLimit": 9, "supportedGenerationMethods": ["generateContent"]},
            ("g",),
            9,
        ),
        ("openai", {"id": "gpt"}, ("gpt",), None),
        ("groq", {"id": "openai/oss", "context_window": 7}, ("openai/oss",), 7),
        (
            "anthropic",
            {"id": "claude-x-20251001", "max_input_tokens": 0},
            ("claude-x-20251001", "claude-x"),
            None,
        ),
        ("anthropic", {"id": "claude-y"}, ("claude-y",), None),
    ],
)
def test_a_listed_model_has_every_name_that_a_candidate_may_use(
    provider: str, entry: dict[str, Any], names: tuple[str, ...], window: int | None
):
    key = "models" if provider in {"ollama", "gemini"} else "data"
    [model] = known()[LLMProvider(provider)].listed({key: [entry, "nonsense"]})
    assert (model.names, model.context_tokens) == (names, window)


def test_what_cannot_chat_is_no_model_of_gemini_s():
    embeds = {"name": "models/e", "supportedGenerationMethods": ["embedContent"]}
    assert known()[LLMProvider.GEMINI].listed({"models": [embeds, {"name": "models/f"}]}) == ()


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("answer", [None, [], {}, {"data": {}, "models": {}}, "<html>"])
def test_what_lists_nothing_is_refused(provider: LLMProvider, answer: Any):
    with pytest.raises(ValueError, match="no list of"):
        known()[provider].listed(answer)


def test_a_provider_of_ones_own_is_asked_as_openai_is():
    class Own(OwnProvider):
        name: ClassVar[str] = "openai"  # whose settings are there
        default_model: ClassVar[str] = "a"
        default_api_base: ClassVar[str] = "http://localhost:1/v1"

    inquiry = Own().listing(SETTINGS)
    assert inquiry is not None
    assert inquiry.url == "https://api.openai.com/v1/models"
    assert inquiry.headers["Authorization"] == f"Bearer {KEY}"
    without = Own().listing(isolated_settings())
    assert without is not None
    assert without.headers == {}
    assert [each.names for each in Own().listed({"data": [{"id": "a"}]})] == [("a",)]


def test_a_line_of_a_download_is_read():
    line = {"status": "pulling a", "digest": "sha256:a", "total": 10}
    assert (progress_of(line).done_bytes, progress_of(line).total_bytes) == (0, 10)
    assert progress_of({**line, "completed": 4}).done_bytes == 4
    assert progress_of({"error": "no"}).error == "no"
    for nonsense in ([], "x", {}, {"status": 1}, None):
        with pytest.raises(ValueError, match="neither a status nor an error"):
            progress_of(nonsense)
