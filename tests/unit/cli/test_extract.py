import json
from pathlib import Path
from typing import Any

import pytest

from app.llm.messages import TextPart
from app.llm.ports import ProviderReply
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import FinishReason, TokenUsage
from tests.unit.cli.conftest import Outcome, Run

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ADA = '{"name": "Ada", "age": 36}'
NO_AGE = '{"name": "Ada", "age": "old"}'


def extract(signalbox: Run, *options: str, schema: Any = PERSON, text: str = "Ada is 36.") -> Outcome:
    Path("schema.json").write_text(schema if isinstance(schema, str) else json.dumps(schema))
    return signalbox("extract", "--schema", "schema.json", "-", *options, stdin=text)


def test_ollama_is_held_to_the_schema_and_the_data_is_printed(signalbox: Run, ollama: StubOllama) -> None:
    ollama.script(Reply.text(ADA))
    done = extract(signalbox)
    assert (done.code, json.loads(done.out), done.err) == (0, {"name": "Ada", "age": 36}, "")
    assert ollama.requests[-1].body["format"]["required"] == ["name", "age"]


def test_gemini_is_held_to_the_schema(signalbox: Run, gemini: StubGemini) -> None:
    gemini.script(Reply.text(ADA))
    assert json.loads(extract(signalbox).out)["age"] == 36


def test_the_text_may_be_a_file(signalbox: Run, client: ScriptedClient) -> None:
    Path("text.txt").write_text("Ada is 36.")
    Path("schema.json").write_text(json.dumps(PERSON))
    client.script.append(text_reply(ADA))
    assert signalbox("extract", "--schema", "schema.json", "text.txt").code == 0
    assert client.sent[0][1].messages[-1].text == "Ada is 36."


@pytest.mark.parametrize("answer", [f"```json\n{ADA}\n```", f"```\n{ADA}\n```", f"\n  {ADA}\n"])
def test_a_code_fence_is_taken_off(signalbox: Run, client: ScriptedClient, answer: str) -> None:
    client.script.append(text_reply(answer))
    assert json.loads(extract(signalbox).out) == json.loads(ADA)


def test_a_bad_answer_is_asked_for_once_more_with_its_faults(signalbox: Run, client: ScriptedClient) -> None:
    client.script += [text_reply(NO_AGE), text_reply(ADA)]
    done = extract(signalbox, "--key", "k")
    assert (done.code, json.loads(done.out)) == (0, json.loads(ADA))
    *_, answer, complaint = client.sent[1][1].messages
    assert (answer.role, answer.text) == ("assistant", NO_AGE)
    assert "$.age: 'old' is not of type 'integer'" in complaint.text
    assert extract(signalbox, "--key", "k").out == done.out
    assert client.sends == 2  # one run, under one key


def test_two_bad_answers_end_with_what_was_wrong(signalbox: Run, client: ScriptedClient) -> None:
    client.script += [text_reply("Sure!"), text_reply(NO_AGE)]
    done = extract(signalbox)
    assert done.code == 1
    assert "$.age: 'old' is not of type 'integer' (run " in done.told
    assert "$: not JSON: Expecting value at line 1, column 1" in client.sent[1][1].messages[-1].text


def test_an_answer_that_was_cut_off_is_not_asked_for_again(signalbox: Run, client: ScriptedClient) -> None:
    cut = ProviderReply(parts=(TextPart(text='{"na'),), finish_reason=FinishReason.LENGTH, usage=TokenUsage())
    client.script.append(cut)
    done = extract(signalbox)
    assert done.code == 1
    assert "was cut off at its longest length: raise max_output_tokens" in done.told
    assert client.sends == 1


def test_the_next_candidate_is_asked_when_the_answers_of_the_first_do_not_fit(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_PROFILE_BALANCED", "ollama:first,ollama:second")
    client.script += [text_reply(NO_AGE), text_reply(NO_AGE), text_reply(ADA)]
    done = json.loads(extract(signalbox, "--json").out)
    assert (done["data"], done["model"]) == (json.loads(ADA), "second")
    assert [len(sent[1].messages) for sent in client.sent] == [2, 4, 2]


def test_json_puts_the_provenance_beside_the_data(signalbox: Run, client: ScriptedClient) -> None:
    client.script.append(text_reply(ADA))
    done = json.loads(extract(signalbox, "--json").out)
    assert (done["data"]["name"], done["provider"], done["served_from"]) == ("Ada", "ollama", "live")


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("NaN", "$: not JSON: NaN is no JSON"),
        ('{"name": Infinity, "age": 1}', "$: the JSON is broken or cut off"),
        ("[" * 5_000, "$: the JSON is cut off: it is never closed"),
    ],
)
def test_what_json_does_not_know_is_no_answer(
    signalbox: Run, client: ScriptedClient, answer: str, fault: str
) -> None:
    client.script += [text_reply(answer), text_reply(answer)]
    assert fault in extract(signalbox).told


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "schema.json: $: not JSON"),
        ([], "schema.json: $: a schema is a JSON object"),
        ({"type": "array"}, "schema.json: $.type: the root must be an object"),
        ({}, "schema.json: $.type: the root must be an object"),
        ({"type": "object", "properties": {"a": {"type": "txt"}}}, "schema.json: $.properties.a.type: 'txt'"),
        ({"$schema": "urn:mine", "type": "object"}, "schema.json: $.$schema: 'urn:mine' is no known draft"),
        (
            {"type": "object", "properties": {"a": {"$ref": "https://example.com/a.json"}}},
            "schema.json: $.properties.a.$ref: 'https://example.com/a.json' is outside of this file",
        ),
        (
            {"type": "object", "anyOf": [{"$ref": "other.json#/$defs/a"}]},
            "schema.json: $.anyOf[0].$ref: 'other.json#/$defs/a' is outside of this file",
        ),
        (
            {"type": "object", "allOf": [{"$ref": "#/$defs/a"}]},
            "$.allOf[0].$ref: '#/$defs/a' is not in this file",
        ),
        ({"type": "object", "$ref": "#"}, "schema.json: $: a $ref leads back to itself"),
    ],
)
def test_a_schema_that_can_judge_nothing_is_refused_before_a_send(
    signalbox: Run, client: ScriptedClient, schema: Any, said: str
) -> None:
    done = extract(signalbox, schema=schema)
    assert done.code == 2
    assert said in done.told
    assert client.sends == 0


def test_the_draft_that_a_schema_names_is_honoured(signalbox: Run, client: ScriptedClient) -> None:
    """A tuple of schemas in `items` means something in Draft 7 only."""
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {"pair": {"type": "array", "items": [{"type": "string"}, {"type": "integer"}]}},
    }
    client.script += [text_reply('{"pair": [1, 1]}'), text_reply('{"pair": ["a", 1]}')]
    assert json.loads(extract(signalbox, schema=schema).out) == {"pair": ["a", 1]}
    assert "$.pair[0]: 1 is not of type 'string'" in client.sent[1][1].messages[-1].text


def test_a_recursive_schema_with_its_root_in_defs_is_fine(signalbox: Run, client: ScriptedClient) -> None:
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}}}
    client.script.append(text_reply('{"next": {"next": null}}'))
    done = extract(signalbox, schema={"$ref": "#/$defs/Node", "$defs": {"Node": node}})
    assert json.loads(done.out) == {"next": {"next": None}}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["extract", "--schema", "none.json", "-"], "cannot read none.json: No such file or directory"),
        (["extract", "-"], "Missing option '--schema'"),
        (
            ["extract", "--schema", "schema.json", "none.txt"],
            "cannot read none.txt: No such file or directory",
        ),
        (["extract", "--schema", "schema.json", "-", "--key", "k" * 256], "--key: "),
    ],
)
def test_a_missing_file_is_one_line(
    signalbox: Run, client: ScriptedClient, args: list[str], said: str
) -> None:
    Path("schema.json").write_text(json.dumps(PERSON))
    done = signalbox(*args, stdin="text")
    assert done.code == 2
    assert said in done.told
