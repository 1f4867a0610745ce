"""How a candidate is asked for JSON of a schema: natively, in JSON mode, or in words."""

import pytest

from app.llm.messages import Message, ResponseFormat
from app.llm.needs import needs_of
from app.llm.structured.means import INSTRUCTION, as_able
from app.llm.types import LLMRequest
from tests.support.ledger import request
from tests.unit.llm.pydanticai.scripted import GEMINI, OLLAMA, candidate

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ADAPTIVE = ResponseFormat(type="adaptive", name="thing", json_schema=SCHEMA)  # type: ignore[arg-type]
TOLD = INSTRUCTION + '\n{"properties":{"a":{"type":"integer"}},"type":"object"}'


def test_a_candidate_that_knows_schemas_gets_the_schema_and_nothing_else():
    asked = request(response_format=ADAPTIVE)
    sent = as_able(asked, candidate(GEMINI))
    assert sent.response_format == ResponseFormat.of_schema(SCHEMA, name="thing")
    assert sent.messages == asked.messages


def test_an_ollama_model_gets_the_schema_and_is_told_it_as_well():
    sent = as_able(request(response_format=ADAPTIVE), candidate(OLLAMA))
    assert sent.response_format == ResponseFormat.of_schema(SCHEMA, name="thing")
    assert sent.messages[0] == Message.system(TOLD)


@pytest.mark.parametrize(("json", "form"), [(True, ResponseFormat(type="json_object")), (False, None)])
def test_others_are_told_the_schema_in_json_mode_or_in_words_alone(json: bool, form: ResponseFormat | None):  # noqa: FBT001
    able = candidate(GEMINI, supports_json_schema=False, supports_json=json)
    sent = as_able(request("Hello", response_format=ADAPTIVE), able)
    assert sent.response_format == form
    assert sent.messages == (Message.system(TOLD), Message.user("Hello"))


def test_the_schema_comes_after_what_the_system_message_says():
    asked = LLMRequest(
        messages=(Message.system("Be brief."), Message.user("Hello")), response_format=ADAPTIVE
    )
    sent = as_able(asked, candidate(OLLAMA))
    assert [turn.role for turn in sent.messages] == ["system", "user"]
    assert sent.messages[0].text == f"Be brief.\n\n{TOLD}"


def test_other_formats_are_left_as_they_are():
    for form in (None, ResponseFormat(type="json_object"), ResponseFormat.of_schema(SCHEMA)):
        asked = request(response_format=form)
        assert as_able(asked, candidate(OLLAMA, supports_json_schema=False)) is asked


def test_an_adaptive_format_demands_no_skill_but_room_for_its_schema():
    needs = needs_of(request(response_format=ADAPTIVE))
    assert not any(needs.skills)
    assert needs.input_tokens_estimate > needs_of(request()).input_tokens_estimate


def test_an_adaptive_format_has_a_schema():
    with pytest.raises(ValueError, match="json_schema is given exactly when"):
        ResponseFormat(type="adaptive")
