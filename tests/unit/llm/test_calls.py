"""What is known of a call before anybody is asked."""

import threading
from typing import Any

import pytest

from app.core.clock import SystemClock
from app.core.ids import new_id
from app.llm import calls
from app.llm.calls import OFF_THE_LOOP
from app.llm.fingerprint import prompt_sha256
from app.llm.messages import FilePart, ImagePart, Message, ToolResultPart
from app.llm.settings import isolated_settings
from app.llm.types import LLMProvider, LLMRequest, RequestVariant

MUCH = OFF_THE_LOOP + 1
LONG = Message.user("x" * MUCH)
SHORT = Message.user("x")
IMAGE = Message.user(ImagePart(data=b"x" * MUCH, media_type="image/png"))
FILE = Message.user(FilePart(data=b"x" * MUCH, media_type="application/pdf"))
RESULT = Message.tool(ToolResultPart(id="1", name="look", content="x" * MUCH))
HALVES = (Message.user("x" * (MUCH // 2 + 1)),) * 2


async def _hashed_in(monkeypatch: pytest.MonkeyPatch, request: LLMRequest) -> tuple[str, bool]:
    """Return the hash of a call's prompt, and whether a thread of its own computed it."""
    threads: list[threading.Thread] = []

    def hashed(asked: Any) -> str:
        threads.append(threading.current_thread())
        return prompt_sha256(asked)

    monkeypatch.setattr(calls, "prompt_sha256", hashed)
    settings = isolated_settings(default_workspace="w1")
    call = await calls.begin(request, None, settings=settings, clock=SystemClock(), new_id=new_id)
    (thread,) = threads
    return call.prompt_sha256, thread is not threading.main_thread()


@pytest.mark.parametrize(
    ("request_", "elsewhere"),
    [
        (LLMRequest(messages=(SHORT,)), False),
        (LLMRequest(messages=(LONG,)), True),
        (LLMRequest(messages=(IMAGE,)), True),
        (LLMRequest(messages=(FILE,)), True),
        (LLMRequest(messages=(SHORT, RESULT)), True),
        (LLMRequest(messages=HALVES), True),
        (
            LLMRequest(messages=(SHORT,), variants={LLMProvider.GEMINI: RequestVariant(messages=(LONG,))}),
            True,
        ),
    ],
    ids=["short", "text", "image", "file", "tool result", "several", "variant"],
)
async def test_a_large_prompt_is_hashed_off_the_loop(
    monkeypatch: pytest.MonkeyPatch,
    request_: LLMRequest,
    elsewhere: bool,  # noqa: FBT001
):
    assert await _hashed_in(monkeypatch, request_) == (prompt_sha256(request_), elsewhere)
