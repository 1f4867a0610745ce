"""A type as a question and as a check: its schema, what passes, and what a model is told of its faults."""

from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, RootModel

from app.llm.checks import Objection
from app.llm.errors import LLMInvalidOutput, LLMInvalidRequest
from app.llm.messages import Message, ResponseFormat, ToolSpec
from app.llm.structured.wanted import MAX_FAULTS, wanted
from app.llm.testing.client import text_reply
from app.llm.types import LLMProvider, LLMResponse, RequestVariant
from tests.support.ledger import new_run, request, response


class Line(BaseModel):
    what: str
    price: float = Field(gt=0)


class Order(BaseModel):
    lines: list[Line]
    due: date | None = None


class Tree(BaseModel):
    name: str
    below: list["Tree"] = []


@dataclass
class Point:
    x: int
    y: int


class Names(RootModel[list[str]]):
    pass


def _value(of: Any, text: str) -> Any:
    return wanted(of, tries=1).checked(response(new_run(), text)).value


def _objection(of: Any, text: str) -> Objection | None:
    return wanted(of, tries=1).objection(text_reply(text))


@pytest.mark.parametrize(
    ("of", "text", "value"),
    [
        (
            Order,
            '{"lines": [{"what": "x", "price": 2}], "due": "2026-12-15"}',
            Order(lines=[Line(what="x", price=2)], due=date(2026, 12, 15)),
        ),
        (Tree, '{"name": "a", "below": [{"name": "b"}]}', Tree(name="a", below=[Tree(name="b")])),
        (Point, '{"x": 1, "y": 2}', Point(1, 2)),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (list[Line], '{"answer": [{"what": "x", "price": 2}]}', [Line(what="x", price=2)]),
        (Names, '{"answer": ["a"]}', Names(["a"])),
        (Literal["yes", "no"], '{"answer": "yes"}', "yes"),
        (int | None, '{"answer": null}', None),
        (tuple[int, str], '{"answer": [1, "a"]}', (1, "a")),
        (Annotated[int, Field(ge=3, json_schema_extra={"examples": [4]})], '{"answer": 3}', 3),
        (Line | Point, '{"answer": {"x": 1, "y": 2}}', Point(1, 2)),
    ],
)
def test_any_type_that_pydantic_takes_can_be_wanted(of: Any, text: str, value: Any):
    assert _value(of, text) == value
    schema = wanted(of, tries=1).form.json_schema
    assert schema is not None
    assert schema.get("type") == "object" or "$ref" in schema


def test_definitions_stay_at_the_root_of_a_schema_that_is_wrapped():
    schema = wanted(list[Line], tries=1).form.json_schema
    assert schema is not None
    assert schema["required"] == ["answer"]
    assert schema["properties"] == {"answer": {"items": {"$ref": "#/$defs/Line"}, "type": "array"}}
    assert set(schema["$defs"]) == {"Line"}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("of", "text", "fault"),
    [
        (Order, '{"lines": [{"what": "x", "price": 0}]}', "$.lines[0].price: Input should be greater than 0"),
        (Order, "{}", "$.lines: Field required"),
        (Order, "[]", "$: Input should be an object"),
        (Order, "Sorry.", "$: not JSON: Expecting value at line 1, column 1"),
        (Order, "", "$: the answer is empty"),
        (list[int], "[1]", "$: must be an object with the field 'answer' alone"),
        (list[int], '{"answer": [1], "more": 1}', "$: must be an object with the field 'answer' alone"),
        (list[int], '{"answer": ["x"]}', "$.answer[0]: Input should be a valid integer, unable to parse"),
        (dict[str, float], '{"a": "half of \\ud83d"}', "$: Invalid JSON"),
    ],
)
def test_what_is_not_valid_is_named_with_its_path_and_without_its_value(of: Any, text: str, fault: str):
    objection = _objection(of, text)
    assert objection is not None
    assert objection.faults[0].startswith(fault)


def test_a_model_is_shown_its_answer_and_told_the_first_faults():
    objection = _objection(list[int], '{"answer": [' + ", ".join(['"secret"'] * 12) + "]}")
    assert objection is not None
    said, complaint = objection.turns
    assert (said.role, complaint.role) == ("assistant", "user")
    assert said.text.startswith('{"answer": ["secret"')
    assert complaint.text.count("\n- $.answer[") == MAX_FAULTS
    assert "secret" not in complaint.text
    assert len(objection.faults) == 12


def test_a_blank_answer_is_no_turn():
    objection = _objection(Order, " ")
    assert objection is not None
    assert [turn.role for turn in objection.turns] == ["user"]


def test_a_repair_never_adds_a_field():
    """The library would make it `{"lines": [], "due": ""}`."""
    assert _objection(Order, '{"lines": [], "due":') is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": (ToolSpec(name="look"),)},
        {"tool_choice": "auto"},
        {"response_format": ResponseFormat(type="json_object")},
        {"variants": {LLMProvider.OLLAMA: RequestVariant(messages=(Message.user("x"),))}},
    ],
)
def test_a_request_that_says_itself_what_its_answer_is_is_refused(fields: dict[str, Any]):
    with pytest.raises(LLMInvalidRequest, match="without tools"):
        wanted(Order, tries=1).asked(request(**fields))


def test_a_type_without_a_schema_is_refused_before_anything_is_sent():
    class Odd:
        pass

    with pytest.raises(LLMInvalidRequest, match="Odd has no JSON schema"):
        wanted(Odd, tries=1)
    with pytest.raises(LLMInvalidRequest, match="tries=0"):
        wanted(Order, tries=0)


def test_a_validator_that_changes_its_mind_is_an_error_of_ours():
    with pytest.raises(LLMInvalidOutput, match="does not pass any more"):
        _value(Order, "{}")


def test_a_schema_is_made_once():
    assert wanted(Order, tries=1).adapter is wanted(Order, tries=2).adapter


def test_the_door_knows_the_shapes():
    from app import llm

    assert isinstance(response(new_run()), LLMResponse)
    assert llm.Checked.__dataclass_params__.frozen  # type: ignore[attr-defined]
