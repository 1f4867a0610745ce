"""Where a request goes is decided by the settings alone, whatever a caller writes into it."""

import base64
import json
from typing import Any

import pytest
from pydantic import ValidationError

from app.llm.errors import LLMError
from app.llm.messages import ImagePart, Message
from app.llm.testing import StubOllama
from app.llm.types import NOT_METADATA, LLMRequest
from tests.security.services import Stubs, wired
from tests.support.ledger import GEMINI_KEY, request

REFUSED = (
    "ollama:x?api_base=http://evil", "ollama:../x", "ollama:a/../../x", "ollama:x/..", "ollama:http://evil",
    "ollama://evil/x", "gemini:x/../../y", "gemini:x/%2e%2e/y", "gemini:x%2f..%2fy", "gemini:x#y", "gemini:x@evil",
    "ollama:\\\\evil\\x", "ollama:/etc/x", "ollama:x/", "ollama:x/./y", "ollama:x\nHost: evil", "ollama:x\r",
    "ollama:x\x00", "ollama:x y", "ollama: x", "ollama:x\t", "ollama:x\u2028y", "ollama:x\u202ey", "ollama:x\x7f",
    "ollama:ollama/x", "ollama:ollama_chat/x",
    "ollama:", ":x", "", "Ollama:x", "ollama:" + "x" * 200,
)  # fmt: skip
ODD = (
    "gemini:second:streamGenerateContent", "gemini:models/second", "gemini:tunedModels/a/b", "gemini:a+b&c=d;e",
    "gemini:$(id)", "ollama:$(id)", "ollama:127.0.0.1:1/x", "ollama:localhost:1", "gemini:127.0.0.1:1",
    "gemini:ollama/x", "gemini:vertex_ai/x", "ollama:huggingface/a/b", "ollama:a/ollama/x", "ollama:é",
)  # fmt: skip
ROUTING = ("api_base", "api_key", "base_url", "headers", "custom_llm_provider", "extra_body", "proxy")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server that the client library may know from the environment; nothing may reach it."""
    with StubOllama() as stub:
        for name in (
            "OLLAMA_API_BASE",
            "GEMINI_API_BASE",
            "OPENAI_API_BASE",
            "OPENAI_BASE_URL",
            "LITELLM_PROXY_API_BASE",
        ):
            monkeypatch.setenv(name, stub.base_url)
        for name in ("OLLAMA_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "LITELLM_PROXY_API_KEY"):
            monkeypatch.setenv(name, "a-key-of-the-environment")
        yield stub
        assert stub.requests == ()


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_s_name_that_could_be_an_address_is_refused(name: str):
    with pytest.raises(ValidationError, match=r"\nmodel\n"):
        request(model=name)


@pytest.mark.parametrize("name", ["ollama:library/x", "ollama:hf.co/org/model:tag"])
async def test_a_model_of_another_library_is_asked_for_by_its_name(sqlite_url: str, stubs: Stubs, name: str):
    async with wired(sqlite_url, stubs) as llm:
        await llm.chat(request(model=name))
    assert stubs.ollama.requests[-1].body["model"] == name.partition(":")[2]


@pytest.mark.parametrize("name", ODD)
async def test_an_odd_name_goes_nowhere_else(sqlite_url: str, stubs: Stubs, elsewhere: Any, name: str):
    async with wired(sqlite_url, stubs, max_attempts=1) as llm:
        with pytest.raises(LLMError):
            await llm.chat(request(model=name))
    asked = stubs.of(name)
    assert len(asked.requests) == 1, "one request, to the provider of that name"
    (sent,) = asked.requests
    model = name.partition(":")[2]
    assert sent.headers["host"] == asked.base_url.split("/")[2]
    if name.startswith("gemini:"):
        assert sent.path == f"/v1beta/models/{model}:generateContent"
        assert not set(sent.query) - {"key"}
    else:
        assert (sent.path, sent.body["model"], dict(sent.query)) == ("/api/chat", model, {})
    assert len(stubs.ollama.requests) + len(stubs.gemini.requests) == 1


@pytest.mark.parametrize("field", ROUTING)
def test_a_request_has_no_field_for_an_address_or_a_key(field: str):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        LLMRequest.model_validate({"messages": [Message.user("x")], field: "http://evil"})


@pytest.mark.parametrize("name", ["ollama:first", "gemini:second"])
async def test_metadata_changes_nothing_on_the_wire(sqlite_url: str, stubs: Stubs, elsewhere: Any, name: str):
    extra = {
        **dict.fromkeys(set(ROUTING) - NOT_METADATA.keys(), elsewhere.base_url), "provider": "gemini",
        "options": {"num_ctx": 1}, "timeout": 0, "mock_response": "evil", "fallbacks": ["openai/x"],
    }  # fmt: skip
    async with wired(sqlite_url, stubs) as llm:
        await llm.chat(request(model=name))
        await llm.chat(request(model=name, metadata=extra))
    plain, smuggled = stubs.of(name).requests
    assert (plain.raw, plain.path, plain.query) == (smuggled.raw, smuggled.path, smuggled.query)
    assert plain.headers == smuggled.headers
    assert b"evil" not in smuggled.raw
    assert elsewhere.base_url not in json.dumps(dict(smuggled.headers))


@pytest.mark.parametrize("name", sorted(NOT_METADATA))
def test_metadata_that_would_direct_a_call_elsewhere_is_refused(name: str):
    with pytest.raises(ValidationError) as refused:
        request(metadata={"note": "x", name: "a-secret-value"})
    assert f"metadata cannot hold {name!r}" in str(refused.value)
    assert "LLM" in str(refused.value)
    assert "a-secret-value" not in str(refused.value)


@pytest.mark.parametrize("name", ["ollama:first", "gemini:second"])
async def test_the_environment_of_the_client_library_is_not_asked(
    sqlite_url: str, stubs: Stubs, elsewhere: Any, name: str
):
    async with wired(sqlite_url, stubs) as llm:
        await llm.chat(request(model=name))
    (sent,) = stubs.of(name).requests
    assert "a-key-of-the-environment" not in f"{dict(sent.headers)}{dict(sent.query)}{sent.raw!r}"
    assert (GEMINI_KEY in sent.headers.values()) is name.startswith("gemini:")


@pytest.mark.parametrize("url", [
    "http://127.0.0.1:{port}/a.png", "https://example.org/a.png", "file:///etc/passwd", "//example.org/a.png",
    "DATA:image/png;base64,AAAA", "data:image/svg+xml;base64,AAAA", "data:text/html;base64,AAAA",
    "data:image/png,http://example.org", "data:image/png;base64,http://example.org/a.png", "data:image/png;base64,",
    "gs://bucket/a.png", "",
])  # fmt: skip
def test_an_image_elsewhere_is_refused(url: str):
    with pytest.raises(ValueError, match=r"image|base64|bytes"):
        ImagePart.from_data_url(url)
    with pytest.raises(ValidationError):
        ImagePart.model_validate({"url": url, "media_type": "image/png"})


async def test_an_address_inside_texts_and_images_is_not_visited(
    sqlite_url: str, stubs: Stubs, elsewhere: Any
):
    url = f"{elsewhere.base_url}/a.png"
    image = ImagePart(data=url.encode(), media_type="image/png")
    asked = LLMRequest(messages=(Message.user(f"![x]({url}) {url}", image),), model="gemini:second")
    async with wired(sqlite_url, stubs) as llm:
        await llm.chat(asked)
    (sent,) = stubs.gemini.requests
    assert base64.b64encode(url.encode()) in sent.raw
