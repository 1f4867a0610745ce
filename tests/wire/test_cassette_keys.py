"""Who had no key when a cassette was recorded is passed over in a replay, too, whatever keys there are then."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.bootstrap import build_llm_service
from app.llm.cassettes.tapes import read
from app.llm.errors import LLMCassetteMiss, LLMUnavailable
from app.llm.service import LLMService
from app.llm.testing import Reply, StubOllama
from tests.support.ledger import FIRST, GEMINI_KEY, request, settings_for

TAPE = Path("tape.jsonl")
SECOND = "gemini:second"


def lines() -> list[str]:
    return TAPE.read_text().splitlines()


@pytest.fixture
def ollama() -> Iterator[StubOllama]:
    with StubOllama(models=("first",)) as stub:
        yield stub


@asynccontextmanager
async def opened(mode: str, base: str = "http://127.0.0.1:9", **values: Any) -> AsyncIterator[LLMService]:
    values = {"gemini_api_key": None, "ollama_api_base": base, **values}
    settings = settings_for(f"sqlite+aiosqlite:///{mode}.db", mode=mode, cassette=TAPE, **values)
    async with build_llm_service(settings) as llm:
        yield llm


@pytest.mark.parametrize("key", [None, GEMINI_KEY], ids=["no-key", "a-key-by-now"])
async def test_who_stands_first_and_has_no_key_is_passed_over_again(ollama: StubOllama, key: str | None):
    ollama.script(Reply.text("From here."))
    lists = {"profile_balanced": f"{SECOND},{FIRST}"}
    async with opened("record", ollama.base_url, **lists) as llm:
        live = await llm.chat(request())
    async with opened("replay", gemini_api_key=key, **lists) as llm:
        said = await llm.chat(request())
    assert (said.text, said.route) == (live.text, live.route)


async def test_who_would_have_been_a_fallback_and_had_no_key_is_none_in_a_replay(ollama: StubOllama):
    ollama.script(Reply.status(500))
    lists = {"profile_balanced": f"{FIRST},{SECOND}"}
    async with opened("record", ollama.base_url, **lists) as llm:
        with pytest.raises(LLMUnavailable) as live:
            await llm.chat(request())
    async with opened("replay", **lists) as llm:
        with pytest.raises(LLMUnavailable) as again:
            await llm.chat(request())
    assert again.value.message == live.value.message
    assert len(again.value.attempts) == len(live.value.attempts) == 1


async def test_the_file_names_them_in_a_line_before_all_calls(ollama: StubOllama):
    lists = {"profile_balanced": f"{SECOND},{FIRST}"}
    async with opened("record", ollama.base_url, **lists) as llm:
        await llm.chat(request())
    assert lines()[0] == '{"no_credentials": ["gemini"], "v": 1}'
    assert list(read(TAPE)) == [2], "it is no call"
    async with opened("replay", **lists) as llm:
        with pytest.raises(LLMCassetteMiss, match="nearest one, in line 2"):
            await llm.chat(request("another"))


async def test_a_file_names_nobody_whom_no_call_would_have_met(ollama: StubOllama):
    async with opened(
        "record", ollama.base_url, profile_fast=FIRST, profile_balanced=f"{FIRST},{SECOND}"
    ) as llm:
        await llm.chat(request(profile="fast"))
        await llm.chat(request(model=FIRST))
    assert list(read(TAPE)) == [1, 2]
