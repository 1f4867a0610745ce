"""Histories both ways: what is understood survives, what is not is refused by name."""

import warnings

import pytest
from pydantic_ai import messages as pai
from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse

from app.llm.messages import Message, TextPart, ThinkingPart, ToolCallPart, ToolResultPart
from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.pydanticai.answers import model_response
from app.llm.pydanticai.lanes import Lane
from app.llm.pydanticai.messages import neutral_messages
from app.llm.types import LLMResponse
from tests.unit.llm.pydanticai.scripted import BOTH, GEMINI, OLLAMA, ScriptedService, answer, call


def neutral(*history: ModelMessage, instructions: tuple[str, ...] = ()) -> tuple[Message, ...]:
    lane = Lane(GEMINI, BOTH[1:])
    return neutral_messages(
        history, instructions=instructions, provider=GEMINI, inline=lane._format_inlined_text_file
    )


async def sent(*history: ModelMessage) -> tuple[Message, ...]:
    """What is asked of the service for a history of any kind, through PydanticAI's own preparation."""
    llm = ScriptedService(answer("ok"))
    await model_request(PydanticAiLiteLLMModel(llm), list(history))
    return llm.requests[0].as_sent_to(GEMINI).messages


@pytest.mark.parametrize(
    "said",
    [
        answer("Paris.", provider=GEMINI),
        answer(ThinkingPart(text="Hm."), provider=GEMINI),
        answer(ThinkingPart(text="Hm.", signature="s"), "Paris.", provider=GEMINI),
        answer(ThinkingPart(text="", signature="s"), provider=GEMINI),
        answer("Let me see.", call("f", {"a": [1, {"b": None}]}, signature="s"), "So.", provider=GEMINI),
    ],
)
def test_an_answer_survives_the_way_to_pydantic_ai_and_back(said: LLMResponse) -> None:
    """Also a turn of thinking alone, and the order of parts."""
    (turn,) = neutral(model_response(said))
    assert (turn.role, turn.content) == ("assistant", said.parts)


def test_an_answer_survives_being_stored_as_json() -> None:
    response = model_response(answer(ThinkingPart(text="Hm.", signature="s"), call("f", {"a": 1})))
    stored = pai.ModelMessagesTypeAdapter.dump_json([response])
    assert pai.ModelMessagesTypeAdapter.validate_json(stored) == [response]


def test_state_of_another_provider_stays_away_and_its_text_goes_along() -> None:
    said = answer(ThinkingPart(text="Hm.", signature="s"), call("f", {}, signature="s"), provider=OLLAMA)
    (turn,) = neutral(model_response(said))
    assert [getattr(part, "signature", None) for part in turn.content] == [None, None]
    opaque = answer(ThinkingPart(text="", signature="s"), provider=OLLAMA)
    assert neutral(model_response(opaque)) == ()


def test_system_prompts_and_instructions_are_one_message_in_front() -> None:
    request = ModelRequest([pai.SystemPromptPart("A."), pai.SystemPromptPart("B."), pai.UserPromptPart("x")])
    assert neutral(request, instructions=("C.",)) == (Message.system("A.\n\nB.\n\nC."), Message.user("x"))


def test_results_of_parallel_calls_are_one_tool_message_and_user_text_follows() -> None:
    request = ModelRequest(
        [
            pai.ToolReturnPart("f", "plain", "1"),
            pai.ToolReturnPart("g", {"a": [1, 2]}, "2"),
            pai.ToolReturnPart("h", None, "3"),
            pai.UserPromptPart("and?"),
        ]
    )
    assert neutral(request) == (
        Message.tool(
            ToolResultPart(id="1", name="f", content="plain"),
            ToolResultPart(id="2", name="g", content='{"a":[1,2]}'),
            ToolResultPart(id="3", name="h", content=""),
        ),
        Message.user("and?"),
    )


def test_texts_of_one_prompt_are_kept_apart_and_a_cache_mark_is_no_content() -> None:
    prompt = pai.UserPromptPart(["Sum up:", pai.TextContent("the text"), pai.CachePoint()])
    assert neutral(ModelRequest([prompt])) == (Message.user("Sum up:\n\nthe text"),)


def test_an_empty_answer_leaves_no_turn() -> None:
    assert neutral(ModelResponse([]), ModelResponse([pai.TextPart("")])) == ()


def test_arguments_that_are_no_json_are_kept_for_the_model_to_see() -> None:
    (turn,) = neutral(ModelResponse([pai.ToolCallPart("f", '{"a": ', "1")]))
    assert turn.content == (ToolCallPart(id="1", name="f", arguments={"INVALID_JSON": '{"a": '}),)


async def test_retries_reach_the_model_as_tool_result_or_user_text() -> None:
    called = ModelResponse([pai.ToolCallPart("f", {}, "1")])
    with warnings.catch_warnings(action="ignore"):  # deprecated, and still in stored histories
        of_a_tool = pai.RetryPromptPart("no such city", tool_name="f", tool_call_id="1")
        of_an_answer = pai.RetryPromptPart("write JSON")
    start = ModelRequest.user_text_prompt("x")
    on_tool = await sent(start, called, ModelRequest([of_a_tool]))
    on_text = await sent(start, ModelResponse([pai.TextPart("Paris")]), ModelRequest([of_an_answer]))
    assert (on_tool[-1].role, on_tool[-1].content[0].type) == ("tool", "tool_result")
    assert "no such city" in str(on_tool[-1].content[0])
    assert on_text[-1].role == "user"
    assert "write JSON" in on_text[-1].text


async def test_a_history_of_another_model_is_understood() -> None:
    foreign = ModelResponse(
        [
            pai.ThinkingPart("Hm.", signature="s", provider_name="anthropic"),
            pai.TextPart("Paris.", id="msg_1", provider_name="openai"),
        ]
    )
    start, end = ModelRequest.user_text_prompt("a"), ModelRequest.user_text_prompt("b")
    assert await sent(start, foreign, end) == (
        Message.user("a"),
        Message.assistant(ThinkingPart(text="Hm."), TextPart(text="Paris.")),
        Message.user("b"),
    )


def test_every_part_of_pydantic_ai_is_understood_or_refused() -> None:
    """A part that a later release adds ends in the refusal, not in silence."""

    class LaterPart:
        part_kind = "later"

    prompt = pai.UserPromptPart("x")
    prompt.content = [LaterPart()]  # type: ignore[list-item]
    shown = ModelRequest([prompt])
    for message in (ModelRequest([LaterPart()]), ModelResponse([LaterPart()]), shown):  # type: ignore[list-item]
        with pytest.raises(UserError, match="LaterPart"):
            neutral(message)
