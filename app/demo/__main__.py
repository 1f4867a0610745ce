"""`python -m app.demo [--live]`: what `make demo` runs."""

import asyncio
import logging
import sys

from app.core.logging import NAME
from app.demo.live import invitation, live_settings
from app.demo.screen import Screen
from app.demo.story import Story
from app.demo.world import live_world, stub_world
from app.llm import LLMError


async def _stubs(screen: Screen) -> int:
    screen.title(
        "Signalbox on stub providers: the answers are canned, everything else is real.",
        "Two servers on loopback speak Ollama's and Gemini's wire format; routing, HTTP, LiteLLM and the ledger are those "
        "of production.\nLLM_FALLBACK_TO_CLOUD and constraints.local_only decide which prompts may leave a machine; here "
        "none does.",
    )
    async with stub_world() as world:
        well = await Story(world, screen).tell()
    if (line := await invitation()) is not None:
        screen.line(f"\n{line}")
    return 0 if well else 1


async def _live(screen: Screen) -> int:
    screen.title(
        "Signalbox on your providers", "A temporary database; what cannot be staged for real is skipped."
    )
    chosen = await live_settings(screen)
    if chosen is None:
        return 1
    async with live_world(chosen) as world:
        return 0 if await Story(world, screen).tell() else 1


def main() -> int:
    """Run the demo; return the exit code."""
    logging.getLogger(NAME).addHandler(logging.NullHandler())  # the screen tells the story
    screen = Screen()
    try:
        return asyncio.run(_live(screen) if "--live" in sys.argv[1:] else _stubs(screen))
    except LLMError as error:
        screen.line(f"signalbox: {error.message}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
