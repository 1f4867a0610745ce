"""What a call does to the process around it: nothing lasting but four switches; and what it shows: no secret."""

import json
import logging
import os
import subprocess
import sys
import traceback
from typing import Any

import pytest

from app.llm.client_litellm import LiteLLMClient
from app.llm.errors import LLMProviderError
from app.llm.messages import Message
from app.llm.settings import LiteLLMLane
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.types import LLMRequest
from tests.wire.conftest import GEMINI_KEY, Rig, in_both_lanes

AT_START = dict(os.environ)  # taken while tests are collected: nothing is loaded yet
PROXY_KEY = "proxy-secret-of-ours"
SWITCHES = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER": "True",
    "LITELLM_MODE": "PRODUCTION",
}

ONE_CALL_EACH = """
import asyncio, json, os, sys, threading
before = dict(os.environ)
import app.llm.client_litellm as module
loaded = [name for name in ("litellm", "httpx", "openai", "tiktoken") if name in sys.modules]
from app.llm.limits import Limits
from app.llm.messages import Message
from app.llm.settings import LiteLLMLane
from app.llm.providers import Catalog
from app.llm.settings import load_settings
from app.llm.types import LLMRequest

async def calls():
    asyncio.get_running_loop().slow_callback_duration = 60  # how fast this machine is, is not the question
    settings = load_settings(_env_file=None, **json.loads(sys.argv[1]))
    client = module.LiteLLMClient(settings=settings, limits=Limits.from_settings(settings))
    request = LLMRequest(messages=(Message.user("Hello"),))
    for name in ("ollama:llama3.2", "gemini:gemini-2.5-flash"):
        candidate = Catalog.from_settings(settings).pinned(name)
        await client.send(request, candidate, run_id='r', workspace_id='w', timeout_s=50, on_send=lambda _: None)
    await client.close()

asyncio.run(calls())
changed = {name: os.environ.get(name) for name in before.keys() | os.environ.keys()
           if before.get(name) != os.environ.get(name)}
threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
tokenizer = "litellm.litellm_core_utils.default_encoding" in sys.modules
print(json.dumps({"loaded": loaded, "changed": changed, "threads": threads, "tokenizer": tokenizer}))
"""


@pytest.fixture(params=list(LiteLLMLane))
def first_calls(
    request: pytest.FixtureRequest, ollama: StubOllama, gemini: StubGemini
) -> "subprocess.CompletedProcess[str]":
    """The first calls of a fresh process, in which every warning is an error."""
    given = {
        "ollama_api_base": ollama.base_url,
        "gemini_api_base": gemini.base_url,
        "gemini_api_key": GEMINI_KEY,
        "litellm_lane": request.param,
    }
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", ONE_CALL_EACH, json.dumps(given)]
    clean = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    clean["TIKTOKEN_CACHE_DIR"] = "as the host has set it"
    return subprocess.run(command, capture_output=True, text=True, timeout=55, check=False, env=clean)


def test_the_first_calls_change_nothing_but_four_switches_and_leave_nothing_behind(
    first_calls: "subprocess.CompletedProcess[str]", ollama: StubOllama, gemini: StubGemini
):
    """The tokenizer, 40 MiB, is for `acompletion` alone."""
    assert first_calls.stderr == ""
    told = json.loads(first_calls.stdout)
    assert told == {
        "loaded": [],
        "changed": SWITCHES,
        "threads": [],
        "tokenizer": '"litellm_lane": "acompletion"' in str(first_calls.args[-1]),
    }
    assert (len(ollama.requests), len(gemini.requests)) == (1, 1)


def test_a_variable_that_litellm_sets_for_itself_is_taken_back(client: LiteLLMClient):
    assert os.environ.get("TIKTOKEN_CACHE_DIR") == AT_START.get("TIKTOKEN_CACHE_DIR")


ALL_KINDS = {
    "echo of the headers": Reply.status(400, message=f"bad header x-goog-api-key: {GEMINI_KEY} {PROXY_KEY}"),
    "echo in HTML": Reply.raw(f"<p>{GEMINI_KEY} {PROXY_KEY}</p>".encode(), status=502),
    "reset": Reply.reset(),
    "garbage": Reply.raw(f"<p>{GEMINI_KEY} {PROXY_KEY}</p>".encode()),
    "empty": Reply.text(""),
    "unauthorized": Reply.status(401),
}


@pytest.mark.parametrize(
    "overrides",
    [
        {
            "ollama_api_key": PROXY_KEY,
            "ollama_headers": "X-Secret: another-secret-of-ours",
            "litellm_lane": lane,
        }
        for lane in LiteLLMLane
    ],
    ids=list(LiteLLMLane),
)
@pytest.mark.parametrize("reply", ALL_KINDS.values(), ids=ALL_KINDS.keys())
async def test_no_secret_and_no_prompt_is_in_what_an_error_shows(
    rig: Rig, reply: Reply, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    request = LLMRequest(messages=(Message.user("private words of the user"),))
    failure = await rig.failure(reply, request)
    assert (failure.__cause__, failure.__context__) == (None, None)
    shown = [str(failure), repr(failure), repr(failure.facts), caplog.text, *_locals_of_ours(failure)]
    for secret in (GEMINI_KEY, PROXY_KEY, "another-secret-of-ours"):
        assert not any(secret in text for text in shown)
    assert not any("private words" in text for text in shown[:4])


def _locals_of_ours(failure: LLMProviderError) -> list[str]:
    frames = traceback.walk_tb(failure.__traceback__)
    inside = [frame for frame, _ in frames if "/app/llm/" in frame.f_code.co_filename]
    assert inside
    return [repr(frame.f_locals) for frame in inside]


async def test_what_a_good_answer_says_is_not_in_the_error_that_refuses_it(rig: Rig):
    failure = await rig.failure(Reply.truncated(Reply.text("words of the model")))
    assert "words of the model" not in failure.message


@in_both_lanes
async def test_litellm_writes_no_log(on_gemini: Rig, caplog: pytest.LogCaptureFixture, capfd: Any):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(LLMProviderError):
        await on_gemini.answer(Reply.status(500))
    assert "LiteLLM" not in caplog.text
    assert capfd.readouterr() == ("", "")
