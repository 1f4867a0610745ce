"""Many requests at once: their order, their failures, and how far ahead they are taken."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Literal, cast

import pytest

from app.db.engine import build_engine
from app.db.unit_of_work import unit_of_work
from app.llm.errors import LLMBadRequest, LLMError
from app.llm.messages import TextPart
from app.llm.service import LLMService
from app.llm.testing.client import ScriptedClient, text_reply
from app.llm.types import LLMRequest
from tests.support.ledger import Outside, request
from tests.support.service import Watched, service


def numbered(count: int) -> list[LLMRequest]:
    return [request(str(number)) for number in range(count)]


def echo(asked: LLMRequest) -> str:
    part = asked.messages[0].content[0]
    assert isinstance(part, TextPart)
    return part.text


class Provider(Watched):
    """Answers with the prompt, once the test has let it; counts what is under way."""

    def __init__(self, *refused: str, held: tuple[str, ...] = ()) -> None:
        super().__init__(self._at)
        self.refused = refused
        self.gates = {text: asyncio.Event() for text in held}
        self.under_way = self.most = 0
        self.cancelled: list[str] = []
        self.arrived: asyncio.Queue[str] = asyncio.Queue()

    async def _at(self, asked: LLMRequest, _: object) -> None:
        text = echo(asked)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.arrived.put_nowait(text)
        try:
            await (self.gates[text].wait() if text in self.gates else asyncio.sleep(0))
        except asyncio.CancelledError:
            self.cancelled.append(text)
            raise
        finally:
            self.under_way -= 1
        failed = LLMBadRequest(f"no {text}", provider="ollama")
        self.script.append(failed if text in self.refused else text_reply(text))

    async def saw(self, count: int) -> None:
        """Return once so many sends have arrived."""
        for _ in range(count):
            await self.arrived.get()


def texts(outcomes: list[object]) -> list[str]:
    return [each.message if isinstance(each, LLMError) else each.text for each in outcomes]  # type: ignore[attr-defined]


async def test_answers_stand_in_the_order_of_the_requests(sqlite_url: str):
    provider = Provider(held=("0",))
    async with service(sqlite_url, provider) as llm:
        asked = asyncio.create_task(llm.map(numbered(5), concurrency=3))
        await provider.saw(5)  # four of them passed the first by
        provider.gates["0"].set()
        assert texts(await asked) == ["0", "1", "2", "3", "4"]
    assert provider.most == 3


async def test_errors_are_returned_in_place_and_the_progress_is_told(sqlite_url: str):
    told: list[tuple[int, int, int | None]] = []
    async with service(sqlite_url, Provider("1", "3")) as llm:
        outcomes = await llm.map(
            numbered(5), concurrency=1, on_error="return", progress=lambda *now: told.append(now)
        )
    assert texts(outcomes) == ["0", "no 1", "2", "no 3", "4"]
    assert [isinstance(each, LLMBadRequest) for each in outcomes] == [False, True, False, True, False]
    assert told == [(1, 0, 5), (2, 1, 5), (3, 1, 5), (4, 2, 5), (5, 2, 5)]


async def test_the_first_failure_ends_what_is_under_way_and_takes_nothing_more(
    sqlite_url: str, outside: Outside
):
    provider = Provider("2", held=("0", "2"))
    taken: list[str] = []

    def taking() -> Iterator[LLMRequest]:
        for each in numbered(100):
            taken.append(echo(each))
            yield each

    async with service(sqlite_url, provider) as llm:
        asked = asyncio.create_task(llm.map(taking(), concurrency=2))
        await provider.saw(3)
        provider.gates["2"].set()
        with pytest.raises(LLMBadRequest, match="no 2"):
            await asked
    assert (provider.cancelled, taken) == (["0"], ["0", "1", "2"])
    assert sorted(row["status"] for row in await outside.runs()) == ["CANCELLED", "FAILED", "SUCCEEDED"]


async def test_whoever_cancels_a_map_cancels_its_calls(sqlite_url: str, outside: Outside):
    provider = Provider(held=("0", "1"))
    async with service(sqlite_url, provider) as llm:
        asked = asyncio.create_task(llm.map(numbered(9), concurrency=2, on_error="return"))
        await provider.saw(2)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert sorted(provider.cancelled) == ["0", "1"]
    assert [row["status"] for row in await outside.runs()] == ["CANCELLED", "CANCELLED"]


@pytest.mark.parametrize("kind", ["iterator", "asynchronous"])
async def test_requests_are_taken_as_calls_end_and_no_further_ahead(sqlite_url: str, kind: str):
    """A batch of a million lines must not be in memory at once."""
    ended, ahead = 0, []

    def taking() -> Iterator[LLMRequest]:
        for number, each in enumerate(numbered(40), 1):
            ahead.append(number - ended)
            yield each

    async def arriving() -> AsyncIterator[LLMRequest]:
        for each in taking():
            await asyncio.sleep(0)
            yield each

    def told(now: int, failed: int, total: int | None) -> None:
        nonlocal ended
        ended = now
        assert (failed, total) == (0, None)

    async with service(sqlite_url, Provider()) as llm:
        outcomes = await llm.map(taking() if kind == "iterator" else arriving(), concurrency=4, progress=told)
    assert texts(outcomes) == [str(number) for number in range(40)]
    assert max(ahead) == 4


async def test_another_word_for_on_error_is_refused_and_nothing_is_sent(sqlite_url: str):
    client = ScriptedClient()
    async with service(sqlite_url, client) as llm:
        with pytest.raises(ValueError, match="on_error is 'raize'; it must be 'raise' or 'return'"):
            await llm.map(numbered(2), on_error=cast(Literal["raise"], "raize"))
    assert client.sends == 0


async def test_nothing_asked_is_nothing_answered(sqlite_url: str):
    async with service(sqlite_url) as llm:
        assert await llm.map([]) == []
        with pytest.raises(ValueError, match="at least one call"):
            await llm.map(numbered(1), concurrency=0)


async def test_an_error_of_the_requests_themselves_ends_the_map(sqlite_url: str):
    provider = Provider(held=("0", "1"))

    async def breaking() -> AsyncIterator[LLMRequest]:
        for each in numbered(2):
            yield each
        await provider.saw(2)
        raise ZeroDivisionError

    async with service(sqlite_url, provider) as llm:
        with pytest.raises(ZeroDivisionError):
            await llm.map(breaking(), concurrency=3, on_error="return")
    assert sorted(provider.cancelled) == ["0", "1"]


async def test_an_error_of_the_progress_callback_ends_the_map(sqlite_url: str):
    provider = Provider(held=("0",))

    def told(*_: object) -> None:
        raise ZeroDivisionError

    async with service(sqlite_url, provider) as llm:
        with pytest.raises(ZeroDivisionError):
            await llm.map(numbered(2), on_error="return", progress=told)
    assert provider.cancelled == ["0"]


async def test_every_call_of_a_map_belongs_to_the_scope_around_it(sqlite_url: str, outside: Outside):
    async with service(sqlite_url, default_workspace=None) as llm:
        with llm.scope(workspace_id="w", pipeline_run_id="p"), llm.scope(stage="s"):
            await llm.map(numbered(3))
    assert {(row["workspace_id"], row["pipeline_run_id"], row["stage"]) for row in await outside.runs()} == {
        ("w", "p", "s")
    }


async def test_a_map_in_a_unit_of_work_sends_at_once_and_writes_one_at_a_time(db_url: str):
    """One session takes one statement at a time; the sends need not wait for each other."""
    client = Provider(held=("0", "1", "2"))
    engine, view = build_engine(db_url), Outside(db_url)
    async with service(db_url, client) as llm, unit_of_work(engine) as session:
        joined: LLMService = llm.joined(session)
        asked = asyncio.create_task(joined.map(numbered(3)))
        await client.saw(3)
        for gate in client.gates.values():
            gate.set()
        assert texts(await asked) == ["0", "1", "2"]
        assert await view.runs() == []
        await session.commit()
    assert [row["status"] for row in await view.runs()] == ["SUCCEEDED"] * 3
    await view.close()
    await engine.dispose()


@pytest.fixture
async def outside(sqlite_url: str) -> AsyncIterator[Outside]:
    view = Outside(sqlite_url)
    yield view
    await view.close()


async def test_equal_keys_in_one_map_are_one_send(sqlite_url: str):
    client = ScriptedClient()
    async with service(sqlite_url, client, on_in_progress="wait") as llm:
        asked = [request(idempotency_key="k")] * 3
        assert len({each.run_id for each in await llm.map(asked)}) == 1
    assert client.sends == 1
