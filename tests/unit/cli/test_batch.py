import fcntl
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from app.llm.candidates import Candidate
from app.llm.errors import LLMBadRequest
from app.llm.messages import ToolCallPart
from app.llm.ports import ProviderReply
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import FinishReason, LLMProfile, LLMRequest, TokenUsage
from tests.unit.cli.conftest import Outcome, Run, Terminal

OUT = Path("out.jsonl")


def wrote(*lines: object) -> None:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    Path("in.jsonl").write_text("".join(f"{line}\n" for line in text), errors="surrogatepass")


def prompts(*names: str) -> None:
    wrote(*({"prompt": name} for name in names))


def results() -> list[Any]:
    return [json.loads(line) for line in OUT.read_text().splitlines()]


def batch(signalbox: Run, *options: str, **given: Any) -> Outcome:
    return signalbox("batch", "in.jsonl", "-o", str(OUT), "--concurrency", "1", *options, **given)


def asked(client: ScriptedClient) -> list[str]:
    return [request.messages[-1].text for _, request in client.sent]


def test_every_line_gets_a_result_with_its_provenance(signalbox: Run, client: ScriptedClient) -> None:
    wrote({"prompt": "Hello", "id": "a"}, "", {"messages": [{"role": "user", "content": "Bye"}]})
    done = batch(signalbox)
    assert (done.code, done.out, done.err) == (0, "2 lines: 2 answered, 0 failed\n", "")
    first, second = results()
    assert (first["line"], first["id"], first["text"], first["served_from"]) == (1, "a", "answer 1", "live")
    assert first["usage"] == {"input_tokens": 3, "output_tokens": 5, "cached_input_tokens": None}
    assert first["run_id"]
    assert (second["line"], second["id"], second["text"]) == (3, None, "answer 2")
    assert OUT.stat().st_mode & 0o777 == 0o600
    assert asked(client) == ["Hello", "Bye"]


def test_tool_calls_are_kept(signalbox: Run, client: ScriptedClient) -> None:
    call = ToolCallPart(id="1", name="weather", arguments={"city": "Oslo"})
    client.script.append(
        ProviderReply(parts=(call,), finish_reason=FinishReason.TOOL_CALLS, usage=TokenUsage())
    )
    wrote({"prompt": "Rain?", "tools": [{"name": "weather"}]})
    assert batch(signalbox).code == 0
    [kept] = results()[0]["tool_calls"]
    assert (kept["name"], kept["arguments"], results()[0]["text"]) == ("weather", {"city": "Oslo"}, "")


def test_options_count_for_lines_that_do_not_say_otherwise(signalbox: Run, client: ScriptedClient) -> None:
    wrote(
        {"prompt": "a"},
        {"prompt": "b", "temperature": 0.1, "system": "Shout.", "constraints": {"local_only": False}},
        {"messages": [{"role": "user", "content": "c"}], "profile": "advanced"},
    )
    options = ("--profile", "fast", "--temperature", "0.5", "--system", "Whisper.", "--local-only")
    assert batch(signalbox, *options, "--workspace", "w", "--stage", "s").code == 0
    sent = [request for _, request in client.sent]
    assert [request.temperature for request in sent] == [0.5, 0.1, 0.5]
    assert [request.profile for request in sent] == [
        LLMProfile.FAST,
        LLMProfile.FAST,
        LLMProfile.ADVANCED,
    ]
    assert [request.messages[0].text for request in sent] == ["Whisper.", "Shout.", "c"]
    assert [request.constraints.local_only for request in sent] == [True] * 3
    listed = json.loads(signalbox("runs", "list", "--json").out)
    assert {(row["workspace_id"], row["stage"]) for row in listed} == {("w", "s")}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "line 2: "),
        ("[]", "line 2: a line is a JSON object"),
        ({}, "line 2: a line has either prompt or messages"),
        ({"prompt": "a", "messages": []}, "line 2: a line has either prompt or messages"),
        ({"prompt": " "}, "line 2: prompt must be a text that says something"),
        ({"prompt": "a", "temperature": 9}, "line 2: temperature: Input should be less than or equal to 2"),
        ({"prompt": "a", "tempreature": 1}, "line 2: tempreature: Extra inputs"),
        ({"prompt": "a", "id": 1.5}, "line 2: id must be a text or a whole number"),
        ({"prompt": "a", "id": "x"}, "line 2: id 'x' is that of line 1"),
        ({"prompt": "a", "idempotency_key": "k"}, "line 2: idempotency_key 'k' is that of line 1"),
        ({"prompt": "a", "metadata": {"workspace_id": 7}}, "line 2: metadata['workspace_id']: "),
        ({"prompt": "a", "metadata": {"stage": "t"}}, "line 2: two sources name different values of stage"),
        ('{"prompt": "\\ud800"}', "line 2: "),
    ],
    ids=str,
)
def test_bad_lines_are_named_before_anything_is_sent(
    signalbox: Run, client: ScriptedClient, line: object, fault: str
) -> None:
    wrote({"prompt": "good", "id": "x", "idempotency_key": "k"}, line)
    done = batch(signalbox, "--stage", "s")
    assert done.code == 2
    assert f"in.jsonl: {fault}" in done.told
    assert "nothing was sent" in done.told
    assert client.sends == 0
    assert not OUT.exists()


def test_many_bad_lines_are_counted(signalbox: Run, client: ScriptedClient) -> None:
    wrote(*["{}"] * 8)
    assert (
        "line 5: a line has either prompt or messages; and 3 more; nothing was sent" in batch(signalbox).told
    )


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--temperature", "9"), "--temperature: "),
        (("--stage", " "), "--stage: "),
        (("--concurrency", "0"), "--concurrency"),
        (("--key", "k"), "No such option"),
    ],
)
def test_an_option_that_is_wrong_is_named(signalbox: Run, options: tuple[str, ...], fault: str) -> None:
    prompts("a")
    done = signalbox("batch", "in.jsonl", "-o", str(OUT), *options)
    assert (done.code, fault in done.told) == (2, True)


def test_a_failed_line_has_its_error_and_is_tried_again_on_resume(
    signalbox: Run, client: ScriptedClient
) -> None:
    prompts("a", "b", "c")
    client.script += [text_reply("A"), LLMBadRequest("not like this", provider="ollama"), text_reply("C")]
    done = batch(signalbox)
    assert (done.code, done.out) == (1, "3 lines: 2 answered, 1 failed\n")
    failed = results()[1]
    assert (failed["line"], failed["error"]["code"]) == (2, "bad_request")
    assert failed["error"]["message"].startswith("not like this")
    assert failed["error"]["run_id"]
    again = batch(signalbox, "--resume")
    assert (again.code, again.out) == (0, "3 lines: 3 answered, 2 of them before, 0 failed\n")
    assert [(each["line"], each["text"]) for each in results()] == [(1, "A"), (3, "C"), (2, "answer 4")]
    assert asked(client) == ["a", "b", "c", "b"]


def test_the_output_of_a_batch_is_not_written_over(signalbox: Run, client: ScriptedClient) -> None:
    prompts("a")
    batch(signalbox)
    before = OUT.read_bytes()
    done = batch(signalbox)
    assert done.code == 2
    assert "out.jsonl is there already: --resume" in done.told
    assert (OUT.read_bytes(), client.sends) == (before, 1)


def test_a_finished_batch_that_is_resumed_does_nothing(signalbox: Run, client: ScriptedClient) -> None:
    prompts("a", "b")
    batch(signalbox, "--resume")
    before = OUT.read_bytes()
    done = json.loads(batch(signalbox, "--resume", "--json").out)
    assert done == {"lines": 2, "answered_before": 2, "served_from": {}, "failed": 0}
    assert (OUT.read_bytes(), client.sends) == (before, 2)


def test_half_a_line_is_mended_and_its_answer_replayed(signalbox: Run, client: ScriptedClient) -> None:
    prompts("a", "b", "c")
    batch(signalbox)
    whole = results()
    OUT.chmod(0o640)
    for cut in (1, 25, len(OUT.read_bytes().splitlines(keepends=True)[-1]) - 1):
        OUT.write_bytes(OUT.read_bytes()[:-cut])
        done = batch(signalbox, "--resume")
        assert done.out == "3 lines: 3 answered, 2 of them before, 1 replayed, 0 failed\n"
        assert [(each["line"], each["text"], each["run_id"]) for each in results()] == [
            (each["line"], each["text"], each["run_id"]) for each in whole
        ]
        assert results()[2]["usage"] == {"input_tokens": 0, "output_tokens": 0, "cached_input_tokens": None}
    assert OUT.stat().st_mode & 0o777 == 0o640
    assert client.sends == 3
    assert sorted(path.name for path in Path().glob("*.jsonl*")) == ["in.jsonl", "out.jsonl"]


def test_lines_that_were_added_at_the_end_are_all_that_a_resumed_batch_sends(
    signalbox: Run, client: ScriptedClient
) -> None:
    prompts("a", "b")
    batch(signalbox)
    prompts("a", "b", "c")
    assert batch(signalbox, "--resume").code == 0
    assert asked(client) == ["a", "b", "c"]


@pytest.mark.parametrize("change", ["a line", "a line with a key", "an option", "fewer lines"])
def test_results_of_other_lines_are_not_taken_for_these(
    signalbox: Run, client: ScriptedClient, change: str
) -> None:
    key = {"idempotency_key": "k"} if change == "a line with a key" else {}
    wrote({"prompt": "a", **key}, {"prompt": "b"})
    batch(signalbox)
    before = OUT.read_bytes()
    if change == "fewer lines":
        prompts("a")
    elif change != "an option":
        wrote({"prompt": "A", **key}, {"prompt": "b"})
    done = batch(signalbox, "--resume", *(("--temperature", "0.5") if change == "an option" else ()))
    assert done.code == 2
    assert "was another one when its answer was written: in.jsonl or the options have changed" in done.told
    assert (OUT.read_bytes(), client.sends) == (before, 2)


@pytest.mark.parametrize("text", ["notes", "notes\n", '{"line": 1}\n', '["line"]\n', "7\n"], ids=repr)
def test_another_file_is_left_alone(signalbox: Run, client: ScriptedClient, text: str) -> None:
    prompts("a")
    OUT.write_text(text)
    done = batch(signalbox, "--resume")
    assert done.code == 2
    assert "out.jsonl holds something else than the results of a batch" in done.told
    assert (OUT.read_text(), client.sends) == (text, 0)


def test_an_output_that_another_batch_writes_is_refused(signalbox: Run, client: ScriptedClient) -> None:
    prompts("a")
    with OUT.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "out.jsonl is being written by another batch" in batch(signalbox, "--resume").told
    assert client.sends == 0


def test_a_line_s_own_key_is_used(signalbox: Run, client: ScriptedClient) -> None:
    wrote({"prompt": "a", "idempotency_key": "mine"})
    batch(signalbox)
    assert results()[0]["key"] == "mine"
    assert json.loads(signalbox("runs", "list", "--key", "mine", "--json").out)[0]["status"] == "SUCCEEDED"


def test_the_same_file_again_is_replayed_into_another_output(signalbox: Run, client: ScriptedClient) -> None:
    prompts("a", "a")
    batch(signalbox)
    done = signalbox("batch", "in.jsonl", "-o", "other.jsonl")
    assert done.out == "2 lines: 2 answered, 2 replayed, 0 failed\n"
    assert asked(client) == ["a", "a"]  # equal lines are two questions


def test_lines_may_come_from_stdin(signalbox: Run, client: ScriptedClient) -> None:
    done = signalbox("batch", "-", "-o", str(OUT), stdin=b'\xef\xbb\xbf{"prompt": "a"}')
    assert (done.code, asked(client)) == (0, ["a"])


def test_no_lines_leave_an_empty_output(signalbox: Run, client: ScriptedClient) -> None:
    prompts()
    assert batch(signalbox).out == "0 lines: 0 answered, 0 failed\n"
    assert OUT.read_text() == ""


def test_a_missing_file_is_named(signalbox: Run) -> None:
    done = batch(signalbox)
    assert (done.code, done.err) == (2, "signalbox: cannot read in.jsonl: No such file or directory\n")


def test_a_batch_needs_a_ledger(signalbox: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PERSIST_RUNS", "false")
    prompts("a")
    assert "a batch needs persisted runs" in batch(signalbox).told
    assert not OUT.exists()


def test_a_database_that_goes_away_stops_the_batch_and_not_line_after_line(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(_: LLMRequest, __: Candidate) -> ProviderReply:
        for path in Path().glob("signalbox.db*"):
            path.write_bytes(b"no database" * 1000)
        return text_reply("paid")

    monkeypatch.setenv("LLM_SPOOL_DIR", "spool")
    monkeypatch.setenv("LLM_FINISH_BUDGET_S", "0.1")
    prompts("a", "b", "c", "d")
    client.script += [text_reply("A"), damaged]
    done = batch(signalbox)
    assert done.code == 1
    assert done.err.startswith("signalbox: ")
    assert [each.get("text") for each in results()] == ["A", "paid"]
    assert client.sends == 2


def test_a_terminal_sees_a_bar_and_a_pipe_nothing(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", Terminal(screen, write_through=True))
    monkeypatch.setenv("TERM", "xterm")
    client.script += [text_reply("A"), LLMBadRequest("no", provider="ollama")]
    prompts("a", "b")
    assert batch(signalbox).code == 1
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue().decode())
    assert "2/2 1 failed" in shown


@pytest.fixture(autouse=True)
def _one_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    for profile in LLMProfile:
        monkeypatch.setenv(f"LLM_PROFILE_{profile.upper()}", "ollama")
