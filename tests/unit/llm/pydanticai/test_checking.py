"""Invalid output of an agent falls back: output and tool arguments are held to the schemas that the agent declares."""

from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError, UnexpectedModelBehavior
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.output import NativeOutput, OutputObjectDefinition, ToolOutput
from pydantic_ai.tools import ToolDefinition

from app.llm.errors import LLMInvalidOutput
from app.llm.messages import ToolCallPart
from app.llm.ports import ProviderReply
from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.pydanticai.checking import MAX_FAULTS, DeclaredCheck
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import FinishReason, TokenUsage
from tests.support.service import service
from tests.unit.llm.pydanticai.scripted import PARIS, City, ScriptedService, answer

SCHEMA = City.model_json_schema()
TOOL = ToolDefinition(name="look_up", parameters_json_schema=SCHEMA)
GOOD = '{"name": "Paris", "country": "France"}'


def _calls(name: str, arguments: dict[str, Any]) -> ProviderReply:
    return ProviderReply(
        parts=(ToolCallPart(id="call_0", name=name, arguments=arguments),),
        finish_reason=FinishReason.TOOL_CALLS,
        usage=TokenUsage(input_tokens=3, output_tokens=5),
    )


def _native(text: str, mode: Any = "native") -> list[str] | None:
    params = ModelRequestParameters(
        output_mode=mode, output_object=OutputObjectDefinition(json_schema=SCHEMA)
    )
    objection = DeclaredCheck(params).objection(text_reply(text))
    return None if objection is None else list(objection.faults)


def test_a_text_is_held_to_the_schema_of_the_output():
    assert _native(GOOD) is None
    assert _native(f"```json\n{GOOD}\n```") is None  # PydanticAI takes the fence off, too
    assert sorted(_native('{"name": 1}') or ()) == [
        "$.name: does not fit 'type'",
        "$: does not fit 'required'",
    ]
    assert _native("Paris", "auto") == ["$: not JSON: Expecting value at line 1, column 1"]
    assert _native(GOOD[:-1] + ",}")  # PydanticAI repairs nothing


def test_a_prompted_text_is_held_to_the_schema_and_may_have_words_around_its_fence():
    assert _native(GOOD, "prompted") is None
    assert _native(f"Here you are:\n```json\n{GOOD}\n```", "prompted") is None
    assert _native("Paris", "prompted") == ["$: not JSON: Expecting value at line 1, column 1"]


def test_a_text_is_an_answer_where_the_agent_takes_texts():
    assert _native("Paris", "text") is None
    either = ModelRequestParameters(output_mode="tool", output_tools=[TOOL], allow_text_output=True)
    assert DeclaredCheck(either).objection(text_reply("Paris")) is None
    tool = ModelRequestParameters(output_mode="tool", output_tools=[TOOL], allow_text_output=False)
    objection = DeclaredCheck(tool).objection(text_reply("Paris"))
    assert objection is not None
    assert objection.faults == ["$: a text, where a tool call was due"]


@pytest.mark.parametrize("place", ["function_tools", "output_tools"])
def test_arguments_are_held_to_the_schema_of_their_tool(place: str):
    check = DeclaredCheck(ModelRequestParameters(**{place: [TOOL]}))
    assert check.objection(_calls("look_up", PARIS)) is None
    wrong = check.objection(_calls("look_up", {**PARIS, "name": 1}))
    assert wrong is not None
    assert wrong.faults == ["look_up.name: does not fit 'type'"]
    unknown = check.objection(_calls("look_down", PARIS))
    assert unknown is not None
    assert unknown.faults == ["look_down: there is no such tool"]


def test_the_first_faults_are_kept_and_nothing_is_fetched():
    many = {"type": "object", "properties": {"a": {"items": {"type": "integer"}}}}
    tool = ToolDefinition(name="t", parameters_json_schema=many)
    objection = DeclaredCheck(ModelRequestParameters(function_tools=[tool])).objection(
        _calls("t", {"a": ["x"] * 50})
    )
    assert objection is not None
    assert len(objection.faults) == MAX_FAULTS
    assert not objection.turns


@pytest.mark.parametrize("on", [False, True])
async def test_the_service_is_given_the_check_where_it_is_switched_on(*, on: bool):
    scripted = ScriptedService(answer("Hello"))
    agent = Agent(PydanticAiLiteLLMModel(scripted, fallback_on_invalid_output=on))
    await agent.run("x")
    assert [isinstance(check, DeclaredCheck) for check in scripted.checks] == [on]


@pytest.mark.parametrize(
    ("output", "bad", "good"),
    [
        (NativeOutput(City), text_reply('{"name": "Paris"}'), text_reply(GOOD)),
        (ToolOutput(City), _calls("final_result", {"name": 5}), _calls("final_result", PARIS)),
        (City, text_reply("Paris, I think."), _calls("final_result", PARIS)),
    ],
)
async def test_invalid_output_falls_back_to_the_next_candidate(
    db_url: str, output: Any, bad: ProviderReply, good: ProviderReply
):
    client = ScriptedClient([bad, good])
    async with service(db_url, client) as llm:
        model = PydanticAiLiteLLMModel(llm, fallback_on_invalid_output=True)
        result = await Agent(model, output_type=output, retries=0).run("Where?")
    assert result.output == City(**PARIS)
    assert [candidate.name for candidate, _ in client.sent] == ["ollama:first", "gemini:second"]
    failed = result.response.failed_attempts or []
    assert [attempt.error for attempt in failed] == ["invalid_output (HTTP 200)"]


async def test_arguments_that_do_not_fit_a_tool_never_reach_it(db_url: str):
    seen: list[int] = []
    client = ScriptedClient([_calls("double", {"n": [1]}), _calls("double", {"n": 4}), text_reply("8")])
    async with service(db_url, client) as llm:
        agent = Agent(PydanticAiLiteLLMModel(llm, fallback_on_invalid_output=True), retries=0)

        @agent.tool_plain
        def double(n: int) -> int:
            seen.append(n)
            return 2 * n

        assert (await agent.run("Twice four?")).output == "8"
    assert seen == [4]
    assert [candidate.name for candidate, _ in client.sent] == [
        "ollama:first",
        "gemini:second",
        "gemini:second",
    ]


async def test_without_the_switch_pydantic_ai_asks_the_same_candidate_again(db_url: str):
    client = ScriptedClient([text_reply('{"name": "Paris"}'), text_reply(GOOD)])
    async with service(db_url, client) as llm:
        agent = Agent(PydanticAiLiteLLMModel(llm), output_type=NativeOutput(City), retries=1)
        assert (await agent.run("Where?")).output == City(**PARIS)
    assert [candidate.name for candidate, _ in client.sent] == ["ollama:first", "ollama:first"]


async def test_when_no_candidate_gives_valid_output_the_run_fails_with_our_code(db_url: str):
    client = ScriptedClient([text_reply("{}"), text_reply("[]")])
    async with service(db_url, client) as llm:
        model = PydanticAiLiteLLMModel(llm, fallback_on_invalid_output=True)
        with pytest.raises(ModelAPIError) as caught:
            await Agent(model, output_type=NativeOutput(City)).run("Where?")
    assert caught.value.provider_error_code == "invalid_output"
    assert not isinstance(caught.value, UnexpectedModelBehavior)
    cause = caught.value.__cause__
    assert isinstance(cause, LLMInvalidOutput)
    assert [each.text for each in cause.rejected] == ["{}", "[]"]


class Nested(BaseModel):
    """A schema with definitions."""

    cities: list[City]


def test_references_within_a_schema_are_followed():
    params = ModelRequestParameters(
        output_mode="native", output_object=OutputObjectDefinition(json_schema=Nested.model_json_schema())
    )
    check = DeclaredCheck(params)
    assert check.objection(text_reply(f'{{"cities": [{GOOD}]}}')) is None
    objection = check.objection(text_reply('{"cities": [{}]}'))
    assert objection is not None
    assert objection.faults[0] == "$.cities[0]: does not fit 'required'"


LETTERS = {"type": "string", "pattern": r"^\p{Lu}\p{L}*$"}


@pytest.mark.parametrize(
    "foreign",
    [
        LETTERS,
        {"patternProperties": {LETTERS["pattern"]: {}}, "additionalProperties": False},
        {"$ref": "https://example.org/name.json"},
        {"type": "str"},
    ],
    ids=["pattern", "names", "reference", "type"],
)
def test_what_a_schema_says_in_foreign_words_is_left_to_pydantic_ai(foreign: dict[str, Any]):
    """Pydantic knows patterns that Python's `re` does not; a server of tools may write whatever it likes."""
    properties = {"name": foreign, "country": {"type": "string"}}
    tool = ToolDefinition(name="t", parameters_json_schema={"type": "object", "properties": properties})
    check = DeclaredCheck(ModelRequestParameters(function_tools=[tool]))
    for name in ("Paris", {"x": 1}):
        if name == "Paris" or foreign is not LETTERS:
            assert check.objection(_calls("t", {"name": name, "country": "France"})) is None
        objection = check.objection(_calls("t", {"name": name, "country": 5}))
        assert objection is not None
        assert "t.country: does not fit 'type'" in objection.faults
