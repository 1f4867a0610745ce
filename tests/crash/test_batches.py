"""A batch that is killed goes on where it was: no line that has its answer is sent again."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from app.cli import batching, main
from app.core.clock import SystemClock
from app.llm.testing import StubOllama
from tests.support import programs
from tests.support.ledger import Outside

pytestmark = pytest.mark.crash

BATCH = ("batch", "in.jsonl", "-o", "out.jsonl", "--concurrency", "2")
LINES = 7


class LeasesEnd(SystemClock):
    """A clock that does not wait: while it would, the leases of dead owners end."""

    __slots__ = ("url", "waits")

    def __init__(self, url: str) -> None:
        self.url = url
        self.waits: list[float] = []

    async def sleep_s(self, seconds: float) -> None:
        self.waits.append(seconds)
        outside = Outside(self.url)
        await outside.end_leases()
        await outside.close()


def test_a_killed_batch_goes_on_without_a_second_send_of_what_had_its_answer(
    db_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """I1, I10: two lines have their answer, one of them only half a line of output; two die with the process."""
    Path("in.jsonl").write_text(
        "".join(f'{{"prompt": "line {n}", "id": {n}}}\n' for n in range(1, LINES + 1))
    )
    clock = LeasesEnd(db_url)
    monkeypatch.setattr(batching, "CLOCK", clock)
    monkeypatch.setenv("LLM_DATABASE_URL", db_url)
    monkeypatch.setenv("LLM_PROFILE_BALANCED", "ollama")
    with StubOllama() as stub:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", stub.base_url)
        _killed_with_two_answers(stub)
        out = Path("out.jsonl")
        assert sorted(json.loads(line)["line"] for line in out.read_text().splitlines()) == [1, 2]
        out.write_bytes(out.read_bytes()[:-20])
        assert main([*BATCH, "--resume"]) == 0
        asked = Counter(each.body["messages"][-1]["content"] for each in stub.requests if each.ordinal)
    assert asked == {f"line {n}": 2 if n in {3, 4} else 1 for n in range(1, LINES + 1)}
    assert len(clock.waits) == 1
    told = capsys.readouterr()
    assert told.out == f"{LINES} lines: {LINES} answered, 1 of them before, 1 replayed, 0 failed\n"
    assert "2 lines under way elsewhere, or when a batch was killed: asking again in " in told.err
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(each["line"] for each in results) == list(range(1, LINES + 1))
    assert {each["line"] for each in results[-2:]} == {3, 4}
    assert [each["id"] for each in results] == [each["line"] for each in results]
    assert asyncio.run(_statuses(db_url)) == {"SUCCEEDED": LINES, "ABANDONED": 2}


def _killed_with_two_answers(stub: StubOllama) -> None:
    """Start a batch and kill it once lines 1 and 2 have their results and 3 and 4 are on the wire."""
    first = stub.hold()
    child = programs.Program(
        [sys.executable, "-m", "app", *BATCH], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    stub.wait_for_sends(2, timeout_s=40)
    second = stub.hold()
    first.release()
    stub.wait_for_sends(4, timeout_s=20)
    child.send_signal(signal.SIGKILL)
    assert child.wait(20) == -signal.SIGKILL
    second.release()


async def _statuses(url: str) -> Counter[str]:
    outside = Outside(url)
    try:
        return Counter(str(row["status"]) for row in await outside.runs())
    finally:
        await outside.close()
