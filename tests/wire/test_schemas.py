"""On the wire: each type of the corpus leaves as its provider can be told it, the same through both lanes."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ToolOutput

from app.bootstrap import build_llm_service
from app.llm.errors import LLMSchemaMismatch
from app.llm.messages import Message, ResponseFormat, ToolSpec
from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.schemas import SchemaDialect, fit
from app.llm.settings import LiteLLMLane, load_settings
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.types import LLMRequest
from tests.support.schemas import CORPUS, schema_of
from tests.wire.conftest import GEMINI_KEY
from tests.wire.pairs import Pair, ended, pair_on, seen

ASKED = (Message.user("x"),)
METADATA = {"workspace_id": "w"}


async def left(pair: Pair, request: LLMRequest, *lanes: LiteLLMLane) -> Any:
    """Return the one body that leaves for a request, in all lanes or in these; the stub need not answer it well."""
    bodies = []
    for lane in lanes or LiteLLMLane:
        await ended(pair.rigs[lane], Reply.text("{}"), request)
        bodies.append(seen(pair.stub.requests[-1])["body"])
    assert all(body == bodies[0] for body in bodies)
    return bodies[0]


def for_an_answer(name: str) -> LLMRequest:
    return LLMRequest(messages=ASKED, response_format=ResponseFormat.of_schema(schema_of(name)))


ALL_TOOLS = LLMRequest(
    messages=ASKED,
    tools=tuple(ToolSpec(name=f"t{n}", parameters=schema_of(name)) for n, name in enumerate(CORPUS)),
)


def with_null(schema: Any) -> Any:
    """Return a schema of Gemini's as JSON schema has it."""
    if isinstance(schema, list):
        return [with_null(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {key: with_null(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [rest, {"type": "null"}]} if schema.get("nullable") is True else rest


def check(schema: Any, name: str, dialect: SchemaDialect) -> None:
    """See that what left refuses no value that the fitted schema accepts."""
    fitted = fit(schema_of(name), dialect).schema
    for value in CORPUS[name][1]:
        if Draft202012Validator(fitted).is_valid(value):
            assert Draft202012Validator(with_null(schema)).is_valid(value), (name, value, schema)
    words = str(schema)
    assert "$ref" not in words or name == "aliases"
    assert not any(f"'{keyword}': " in words for keyword in ("const", "oneOf", "allOf", "exclusiveMinimum"))


async def answers(pair: Pair) -> AsyncIterator[tuple[str, Any]]:
    """Yield what leaves for an answer of each type; in both lanes for some, which are slower by far."""
    for number, name in enumerate(CORPUS):
        request = for_an_answer(name)
        yield name, await left(pair, request, *([] if number % 8 == 0 else [LiteLLMLane.DIALECT]))


async def test_ollama_gets_every_type_of_the_corpus_as_an_answer():
    async with pair_on("ollama") as pair:
        async for name, body in answers(pair):
            assert body["format"] == fit(schema_of(name), SchemaDialect.OLLAMA_FORMAT).schema


async def test_ollama_gets_every_type_of_the_corpus_as_a_tool():
    async with pair_on("ollama") as pair:
        body = await left(pair, ALL_TOOLS)
        for name, tool in zip(CORPUS, body["tools"], strict=True):
            assert tool["function"]["parameters"] == fit(schema_of(name), SchemaDialect.OLLAMA_TOOLS).schema


async def test_gemini_gets_every_type_of_the_corpus_as_an_answer():
    async with pair_on("gemini") as pair:
        async for name, body in answers(pair):
            sent = body["generationConfig"].get("response_json_schema", {})  # an empty one goes without
            assert sent == fit(schema_of(name), SchemaDialect.GEMINI_JSON_SCHEMA).schema


async def test_gemini_gets_every_type_of_the_corpus_as_a_tool():
    async with pair_on("gemini") as pair:
        body = await left(pair, ALL_TOOLS)
        declared = body["tools"][0]["function_declarations"]
        for name, tool in zip(CORPUS, declared, strict=True):
            check(tool["parameters"], name, SchemaDialect.GEMINI_TOOLS)


async def test_a_gemini_model_without_a_number_gets_every_type_of_the_corpus():
    async with pair_on("gemini", "unheard-of") as pair:
        async for name, body in answers(pair):
            check(body["generationConfig"]["response_schema"], name, SchemaDialect.GEMINI_OPENAPI)


class Price(BaseModel):
    amount: float = Field(gt=0)
    tags: set[str]


@pytest.mark.parametrize(("mismatch", "sends"), [("simplify", (1, 0)), ("route", (0, 1)), ("error", (0, 0))])
async def test_the_setting_decides_who_is_asked(mismatch: str, sends: tuple[int, int], tmp_path: Any):
    """Only Gemini can be told how long a text of a tool may be."""
    limited = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}}
    request = LLMRequest(messages=ASKED, tools=(ToolSpec(name="t", parameters=limited),), metadata=METADATA)
    with StubOllama() as ollama, StubGemini(api_key=GEMINI_KEY) as gemini:
        settings = load_settings(
            _env_file=None, ollama_api_base=ollama.base_url, gemini_api_base=gemini.base_url,
            gemini_api_key=GEMINI_KEY, schema_mismatch=mismatch,
            database_url=f"sqlite+aiosqlite:///{tmp_path}/runs.db",
        )  # fmt: skip
        async with build_llm_service(settings) as llm:
            if mismatch == "error":
                with pytest.raises(LLMSchemaMismatch, match="#/properties/a of tools/t"):
                    await llm.chat(request)
            else:
                response = await llm.chat(request)
                told = [(entry["provider"], entry["reason"]) for entry in response.route]
                assert ("ollama", "schema_mismatch" if mismatch == "route" else "listed") in told
        assert (ollama.sends, gemini.sends) == sends


@pytest.mark.parametrize("lane", LiteLLMLane)
async def test_an_agent_s_schemas_are_fitted_where_they_leave_and_validated_by_the_agent(lane: LiteLLMLane):
    with StubOllama() as ollama:
        settings = load_settings(
            _env_file=None, ollama_api_base=ollama.base_url, litellm_lane=lane, profile_balanced="ollama",
            persist_runs=False, default_workspace="w",
        )  # fmt: skip
        async with build_llm_service(settings) as llm:
            model = PydanticAiLiteLLMModel(llm)
            await Agent(model, output_type=Price).run("x")
            await Agent(model, output_type=ToolOutput(Price)).run("x")
        asked = [received.body for received in ollama.requests if received.ordinal]
    amount = asked[0]["format"]["properties"]["amount"]
    assert amount == {"type": "number"}
    told = asked[1]["tools"][0]["function"]["parameters"]["properties"]
    assert told["amount"] == {"type": "number", "description": "(exclusiveMinimum: 0)"}
