"""Tests of a program of your own, answered from files: no provider, no key, the same answers every time.

    .venv/bin/pytest examples/replayed                            answered from cassettes/
    .venv/bin/pytest examples/replayed --signalbox-mode=record    asks your Ollama again

What was recorded is committed; `git diff` shows what a model says now. A test whose prompt has changed fails, and says
where the nearest recorded one differs.
"""

import asyncio
from pathlib import Path

import pytest
from pydantic import BaseModel

from app.bootstrap import build_llm_service
from app.llm import LLMRequest, Message, load_settings


class Ticket(BaseModel):
    """What the program makes of a report."""

    team: str
    urgent: bool


async def sorted_by_team(report: str) -> tuple[Ticket, int]:
    """Return the ticket of a report, and how many sends it took: the program under test."""
    settings = load_settings(profile_fast="ollama", default_workspace="tests")
    async with build_llm_service(settings) as llm:
        asked = LLMRequest(
            messages=(Message.system("Sort reports by team: signals or track."), Message.user(report)),
            profile="fast",
        )
        checked = await llm.structured(Ticket, asked)
        return checked.value, len(checked.response.attempts)


@pytest.mark.signalbox_cassette
def test_a_report_becomes_a_ticket() -> None:
    """Answered from cassettes/test_replayed/test_a_report_becomes_a_ticket.jsonl."""
    ticket, _ = asyncio.run(sorted_by_team("Points 12 do not lock."))
    assert ticket == Ticket(team="signals", urgent=True)


@pytest.mark.signalbox_cassette("busy")
def test_a_busy_provider_is_tried_again(signalbox_cassette: Path) -> None:
    """What is hard to come by live is recorded once, or written by hand: cassettes/busy.jsonl begins with a 503."""
    ticket, sends = asyncio.run(sorted_by_team("A sleeper is cracked."))
    assert (ticket.team, sends) == ("track", 2)
    assert signalbox_cassette.name == "busy.jsonl"
