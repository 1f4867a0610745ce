import json
import sys

import pytest

from app.llm.candidates import Candidate
from app.llm.errors import LLMTimeout
from app.llm.messages import TextPart
from app.llm.ports import ProviderReply
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import FinishReason, LLMRequest, TokenUsage
from tests.unit.cli.conftest import Run


def test_the_answer_is_all_that_is_printed(signalbox: Run, ollama: StubOllama) -> None:
    ollama.script(Reply.text("Oslo."))
    done = signalbox("chat", "Capital of Norway?")
    assert (done.code, done.out, done.err) == (0, "Oslo.\n", "")


def test_gemini_answers_as_well(signalbox: Run, gemini: StubGemini) -> None:
    gemini.script(Reply.text("Oslo."))
    assert signalbox("chat", "Capital of Norway?").out == "Oslo.\n"


def test_a_dash_reads_the_prompt_from_stdin(signalbox: Run, ollama: StubOllama) -> None:
    signalbox("chat", "-", stdin="Grüße, 世界")
    assert ollama.requests[-1].body["messages"][-1]["content"] == "Grüße, 世界"


def test_a_second_call_with_the_key_is_replayed_and_verbose_says_so(
    signalbox: Run, client: ScriptedClient
) -> None:
    first = signalbox("chat", "Hello", "--key", "k", "-v")
    again = signalbox("chat", "Hello", "--key", "k", "-v")
    assert first.out == again.out == "answer 1\n"
    assert "ollama:llama3.2 | live | run " in first.err
    assert "| 1 attempt |" in first.err
    assert "| replay | run " in again.err
    assert "3 + 5 tokens" in again.err
    assert client.sends == 1


def test_json_is_one_document_with_the_provenance(signalbox: Run, client: ScriptedClient) -> None:
    done = signalbox("chat", "Hello", "--json")
    answer = json.loads(done.out)
    assert (answer["text"], answer["provider"], answer["served_from"]) == ("answer 1", "ollama", "live")
    assert answer["persisted"] is True
    assert done.err == ""


def test_every_option_reaches_the_request(signalbox: Run, client: ScriptedClient) -> None:
    signalbox(
        *(
            "chat",
            "Hello",
            "--profile",
            "fast",
            "--model",
            "ollama:other",
            "--system",
            "Be brief.",
            "--key",
            "k",
        ),
        *(
            "--local-only",
            "--timeout",
            "7",
            "--cache",
            "refresh",
            "--max-output-tokens",
            "9",
            "--temperature",
            "0.5",
        ),
        *("--workspace", "acme", "--stage", "draft"),
    )
    [(candidate, request)] = client.sent
    assert candidate.name == "ollama:other"
    assert [message.text for message in request.messages] == ["Be brief.", "Hello"]
    said = request.model_dump(
        mode="json", include={"profile", "cache", "timeout_s", "max_output_tokens", "temperature"}
    )
    assert said == {
        "profile": "fast", "cache": "refresh", "timeout_s": 7.0, "max_output_tokens": 9, "temperature": 0.5,
    }  # fmt: skip
    assert request.constraints.local_only is True
    [run] = json.loads(signalbox("runs", "list", "--json").out)
    assert (run["workspace_id"], run["stage"], run["idempotency_key"]) == ("acme", "draft", "k")


@pytest.mark.parametrize(("setting", "workspace"), [(None, "local"), ("tenant-7", "tenant-7")])
def test_the_workspace_is_the_setting_s_or_local(
    signalbox: Run,
    client: ScriptedClient,
    monkeypatch: pytest.MonkeyPatch,
    setting: str | None,
    workspace: str,
) -> None:
    if setting:
        monkeypatch.setenv("LLM_DEFAULT_WORKSPACE", setting)
    signalbox("chat", "Hello")
    assert json.loads(signalbox("runs", "list", "--json").out)[0]["workspace_id"] == workspace


def test_an_answer_that_was_cut_off_says_so(signalbox: Run, client: ScriptedClient) -> None:
    cut = ProviderReply(parts=(TextPart(text="Once"),), finish_reason=FinishReason.LENGTH, usage=TokenUsage())
    client.script.append(cut)
    done = signalbox("chat", "Tell me")
    assert (done.code, done.out) == (0, "Once\n")
    assert done.err == "signalbox: the answer is incomplete (length)\n"


def test_a_failed_call_names_its_run_and_that_it_may_be_paid(signalbox: Run, client: ScriptedClient) -> None:
    def hang(request: LLMRequest, candidate: Candidate) -> ProviderReply:
        raise LLMTimeout("no answer in time", provider="ollama", possibly_paid=True)

    client.script += [hang] * 4
    done = signalbox("chat", "Hello")
    assert done.code == 1
    assert "no answer in time (run " in done.told
    assert done.told.endswith(", possibly paid)\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["chat", "  "], "the prompt is empty"),
        (["chat", "x", "--temperature", "9"], "--temperature: Input should be less than or equal to 2"),
        (["chat", "x", "--timeout", "0"], "--timeout: Input should be greater than 0"),
        (["chat", "x", "--key", "a\nb"], "--key: idempotency_key must be printable text"),
        (["chat", "x", "--workspace", "a\nb"], "--workspace: a context field must be printable"),
        (["chat", "x", "--model", "llama3.2"], "--model: write PROVIDER:MODEL"),
        (["chat", "x", "--model", "acme:m"], "'acme:m' names no candidate"),
        (["chat", "x", "--profile", "huge"], "'huge' is not one of 'fast', 'balanced', 'advanced'"),
        (["chat", "x", "--cache", "no"], "'no' is not one of 'use', 'refresh', 'bypass'"),
        (["chat"], "Missing argument 'PROMPT' (see `signalbox chat --help`)"),
        (["nothing"], "No such command 'nothing' (see `signalbox --help`)"),
        (["runs"], "Missing command (see `signalbox runs --help`)"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_sends_nothing(
    signalbox: Run, client: ScriptedClient, args: list[str], said: str
) -> None:
    done = signalbox(*args)
    assert done.code == 2
    assert said in done.told
    assert client.sends == 0


def test_stdin_that_is_no_text_is_refused(signalbox: Run) -> None:
    done = signalbox("chat", "-", stdin=b"ab\xff")
    assert (done.code, done.told) == (2, "signalbox: stdin is not UTF-8 text (byte 2)\n")


def test_a_terminal_gets_no_control_characters_and_a_file_gets_every_byte(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.script += [text_reply("\x1b[2Jred\ttab"), text_reply("\x1b[2Jred\ttab")]
    assert signalbox("chat", "1").out == "\x1b[2Jred\ttab\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert signalbox("chat", "2").out == "\N{REPLACEMENT CHARACTER}[2Jred\ttab\n"


def test_a_lone_surrogate_is_printed_as_its_escape(signalbox: Run, client: ScriptedClient) -> None:
    client.script += [text_reply("a\ud800b"), text_reply("a\ud800b")]
    assert signalbox("chat", "1").out == "a\\ud800b\n"
    assert json.loads(signalbox("chat", "2", "--json").out)["text"] == "a\ud800b"


def test_events_are_shown_on_demand_only(signalbox: Run, client: ScriptedClient) -> None:
    assert signalbox("chat", "Hello").err == ""
    events = [json.loads(line)["event"] for line in signalbox("--log", "chat", "Hello").err.splitlines()]
    assert events == ["llm_ready", "llm_call"]
    assert signalbox("chat", "Hello").err == ""


def test_debug_shows_the_traceback_before_the_line(
    signalbox: Run, client: ScriptedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(request: LLMRequest, candidate: Candidate) -> ProviderReply:
        raise RuntimeError("boom")

    client.script += [broken, broken]
    short, long = signalbox("chat", "1"), signalbox("--debug", "chat", "1")
    assert short.code == long.code == 1
    assert "Traceback" not in short.err
    assert "Traceback" in long.err
    assert long.err.splitlines()[-1].startswith("signalbox: ")
