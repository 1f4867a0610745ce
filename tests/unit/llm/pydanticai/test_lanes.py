"""A lane remembers what it prepared, by value: an agent that changes a tool in place is never served the old one."""

from typing import Any

import pytest
from pydantic_ai.messages import InstructionPart, ModelMessage, ModelRequest
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from app.llm.providers import Catalog
from app.llm.pydanticai import lanes
from app.llm.pydanticai.lanes import Lane
from app.llm.settings import isolated_settings
from app.llm.types import LLMProvider

_ASKED: list[ModelMessage] = [ModelRequest.user_text_prompt("Where?")]


def _lane() -> Lane:
    catalog = Catalog.from_settings(isolated_settings(profile_fast="ollama:qwen3"))
    return Lane(LLMProvider.OLLAMA, catalog.all[:1])


def _params(**properties: Any) -> ModelRequestParameters:
    schema = {"type": "object", "properties": properties}
    return ModelRequestParameters(
        function_tools=[ToolDefinition(name="look", description="Looks.", parameters_json_schema=schema)]
    )


def _declared(lane: Lane, params: ModelRequestParameters) -> Any:
    (tool,) = lane.render(_ASKED, ModelSettings(), params).tools
    return tool.parameters["properties"]


def test_equal_parameters_are_prepared_once(monkeypatch: pytest.MonkeyPatch):
    lane, prepared = _lane(), []
    through = lanes.Model.prepare_request

    def counting(self: Any, *given: Any) -> Any:
        prepared.append(given)
        return through(self, *given)

    monkeypatch.setattr(lanes.Model, "prepare_request", counting)
    for _ in range(3):
        assert _declared(lane, _params(where={"type": "string"})) == {"where": {"type": "string"}}
    assert len(prepared) == 1


def test_a_tool_that_was_changed_in_place_is_prepared_again():
    lane, params = _lane(), _params(where={"type": "string"})
    assert _declared(lane, params) == {"where": {"type": "string"}}
    params.function_tools[0].parameters_json_schema["properties"]["when"] = {"type": "string"}
    assert set(_declared(lane, params)) == {"where", "when"}
    assert set(_declared(lane, _params(where={"type": "string"}))) == {"where"}


def test_parameters_that_are_no_plain_data_are_prepared_each_time():
    lane = _lane()
    params = _params(where={"type": "string"})
    params.function_tools[0].metadata = {"owner": object()}
    for _ in range(2):
        assert _declared(lane, params) == {"where": {"type": "string"}}
    assert lane._prepared == {}


def test_what_is_remembered_shares_nothing_with_the_agent():
    lane, said = _lane(), InstructionPart(content="Be brief.")
    lane.render(_ASKED, ModelSettings(), ModelRequestParameters(instruction_parts=[said]))
    said.content = "Be long."
    again = ModelRequestParameters(instruction_parts=[InstructionPart(content="Be brief.")])
    assert lane.render(_ASKED, ModelSettings(), again).messages[0].text == "Be brief."
