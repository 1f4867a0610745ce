"""What an import may load: a program that only replays never pays for the libraries that send."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.ledger import ROOT, request
from tests.support.service import service

HEAVY = (
    "litellm",
    "pydantic_ai",
    "aiohttp",
    "sqlalchemy",
    "asyncpg",
    "aiosqlite",
    "alembic",
    "boto3",
    "rich",
    "openai",
    "prometheus_client",
    "pyarrow",
    "matplotlib",
    "genai_prices",
    "cryptography",
    "opentelemetry.sdk",
)

OF_A_LEDGER = ("sqlalchemy", "aiosqlite", "asyncpg", "alembic", "aiohttp")
"""What a service with a ledger may load: its drivers, and what asks providers for their models."""
REPLAY = """
import asyncio, sys, json
from app.bootstrap import build_llm_service
from app.llm import LLMRequest, Message, load_settings

async def main():
    settings = load_settings(database_url={url!r}, default_workspace="w1")
    async with build_llm_service(settings) as llm:
        asked = LLMRequest(messages=(Message.user("What is a signal box?"),), idempotency_key="k1")
        return (await llm.chat(asked)).served_from

served = asyncio.run(main())
print(json.dumps([served, sorted(sys.modules)]))
"""


def _fresh(code: str) -> Any:
    """Run code in a new interpreter; return the JSON it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        timeout=50,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", ["app.llm", "app.bootstrap", "app.llm.service"])
def test_importing_the_front_rooms_loads_no_adapter(module: str):
    loaded = _fresh(f"import sys, json, {module}\nprint(json.dumps(sorted(sys.modules)))")
    assert [name for name in HEAVY if name in loaded] == []


async def test_a_replay_in_a_fresh_process_loads_nothing_that_sends(sqlite_url: str):
    async with service(sqlite_url) as llm:
        await llm.chat(request(idempotency_key="k1"))
    served, loaded = _fresh(REPLAY.format(url=sqlite_url))
    assert served == "replay"
    assert [name for name in HEAVY if name in loaded and name not in OF_A_LEDGER] == []
