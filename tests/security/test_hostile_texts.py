"""Texts are data: whatever they hold, they arrive as they are, and forge neither rows nor log lines."""

import json
import logging
from typing import Any

import pytest
from pydantic import ValidationError

from app.bootstrap import open_executor, payload_codec
from app.llm.errors import LLMContractError, LLMNoCandidate, LLMProviderError
from app.llm.messages import Message, ToolCallPart, ToolResultPart, ToolSpec
from app.llm.persistence.reports import run_details
from app.llm.testing import Reply
from app.llm.types import LLMCallContext, LLMRequest, RequestVariant
from tests.security.services import Stubs, wired
from tests.support.ledger import Outside, request, settings_for

FORGED = '{"event": "llm_call", "level": "info", "status": "FORGED"}'
TEXTS = {
    "NUL": "a\x00b\x00",
    "controls": "".join(map(chr, range(32))) + "\x7f\x80\x9f\x1b[2J\x1b]0;title\x07",
    "forged line": f'x"\n{FORGED}\r\n{FORGED}\u2028{FORGED}\u2029\x85{FORGED}',
    "not characters": "\ufffe\uffff\U0010ffff\ufeff\u202e\u200b",
    "SQL and formats": "'; DROP TABLE llm_runs; -- %s %(x)s :p_id {0} ${x} \\u0000 \\",
}
HUGE = "é\x00\n" * (10 * 2**20 // 4)
HALF = "half \ud800 of a pair"
PROVIDERS = ("ollama:first", "gemini:second")


def lines(caplog: Any) -> list[dict[str, Any]]:
    """Return our log's lines, each a JSON object of its own."""
    said = [record.getMessage() for record in caplog.records if record.name == "signalbox"]
    assert all(len(line.splitlines()) == 1 for line in said)
    return [json.loads(line) for line in said]


def text_on_the_wire(sent: Any) -> str:
    if "contents" in sent.body:
        return str(sent.body["contents"][-1]["parts"][-1]["text"])
    return str(sent.body["messages"][-1]["content"])


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_a_hostile_text_arrives_and_returns_as_it_is(
    db_url: str, stubs: Stubs, caplog: Any, name: str, text: str
):
    caplog.set_level(logging.INFO)
    stubs.of(name).script(Reply.text(text))
    async with wired(db_url, stubs, log_content=True) as llm:
        answer = await llm.chat(request(text, model=name, idempotency_key="k1"))
        assert (await llm.chat(request(text, model=name, idempotency_key="k1"))).text == text
    assert answer.text == text
    assert text_on_the_wire(stubs.of(name).requests[-1]) == text
    calls = [line for line in lines(caplog) if line["event"] == "llm_call"]
    assert [call["status"] for call in calls] == ["SUCCEEDED"] * 2

    settings = settings_for(db_url)
    executor = await open_executor(settings)
    details = await run_details(executor, answer.run_id, payload_codec(settings))
    await executor.close()
    assert details is not None
    assert details.request["request"]["messages"][0]["content"][0]["text"] == text
    assert details.response["parts"][0]["text"] == text


async def test_ten_megabytes_arrive_and_are_kept(db_url: str, stubs: Stubs, outside: Outside):
    stubs.ollama.script(Reply.text("read"))
    asked = request(HUGE, idempotency_key="k1", model="ollama:first")
    async with wired(db_url, stubs, ollama_num_ctx=10_000_000) as llm:
        await llm.chat(asked)
        assert (await llm.chat(asked)).text == "read"
    assert text_on_the_wire(stubs.ollama.requests[-1]) == HUGE
    assert len(await outside.runs(status="SUCCEEDED")) == 1


async def test_a_text_that_no_window_holds_is_refused_unsent(sqlite_url: str, stubs: Stubs):
    async with wired(sqlite_url, stubs) as llm:
        with pytest.raises(LLMNoCandidate):
            await llm.chat(request(HUGE))
    assert stubs.ollama.sends + stubs.gemini.sends == 0


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_provider_s_words_forge_no_line_and_break_no_row(
    db_url: str, stubs: Stubs, outside: Outside, caplog: Any, name: str
):
    caplog.set_level(logging.INFO)
    stubs.of(name).script(Reply.status(400, message="".join(TEXTS.values())))
    async with wired(db_url, stubs) as llm:
        with pytest.raises(LLMProviderError) as caught:
            await llm.chat(request(model=name))
    assert len(caught.value.message.splitlines()) == 1
    assert not [line for line in lines(caplog) if line.get("status") == "FORGED"]
    (row,) = await outside.runs()
    assert (row["status"], len(row["error_message"].splitlines())) == ("FAILED", 1)


def _with_half(place: str) -> dict[str, Any]:
    hello = Message.user("hello")
    call = ToolCallPart(id="1", name="t", arguments={"a": [{HALF: 1}]})
    return {
        "text": {"messages": (Message.user(HALF),)},
        "system": {"messages": (Message.system(HALF), hello)},
        "tool call": {"messages": (hello, Message.assistant(call))},
        "tool result": {"messages": (hello, Message.tool(ToolResultPart(id="1", name="t", content=HALF)))},
        "tool": {"messages": (hello,), "tools": (ToolSpec(name="t", description=HALF),)},
        "schema": {"messages": (hello,), "tools": (ToolSpec(name="t", parameters={"x": HALF}),)},
        "stop": {"messages": (hello,), "stop": (HALF,)},
        "metadata": {"messages": (hello,), "metadata": {"x": HALF}},
        "variant": {
            "messages": (hello,),
            "variants": {"ollama": RequestVariant(messages=(Message.user(HALF),))},
        },
    }[place]


@pytest.mark.parametrize(
    "place",
    ["text", "system", "tool call", "tool result", "tool", "schema", "stop", "metadata", "variant"],
)
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(place: str):
    with pytest.raises(ValidationError, match="half of a surrogate pair"):
        LLMRequest(**_with_half(place))


@pytest.mark.parametrize("field", ["workspace_id", "pipeline_run_id", "stage", "idempotency_key"])
@pytest.mark.parametrize(
    "value", [f"x\n{FORGED}", "x\x00", "x\x1b[2J", "\u202ex", HALF, " ", "x\u2028y", "x" * 256]
)
def test_a_name_of_the_context_that_could_forge_a_line_is_refused(field: str, value: str):
    with pytest.raises(ValidationError):
        LLMCallContext(**{field: value})


@pytest.mark.parametrize("field", ["workspace_id", "stage"])
async def test_so_is_one_in_the_metadata(sqlite_url: str, stubs: Stubs, caplog: Any, field: str):
    caplog.set_level(logging.INFO)
    async with wired(sqlite_url, stubs, default_workspace=None) as llm:
        with pytest.raises(LLMContractError):
            await llm.chat(request(metadata={"workspace_id": "w1", field: f"x\n{FORGED}"}))
    assert not [line for line in lines(caplog) if line.get("status") == "FORGED"]
    assert stubs.ollama.sends == 0
