"""What a new interpreter pays: imports, and an answer that is there already."""

import asyncio
import json
import sys
from statistics import median
from typing import Any

from app.llm import LLMService
from bench.cases.ours import request, service
from bench.world import World

IMPORTS, PROGRAMS = 5, 3
"""Rounds; the best one counts."""
HEAVY = ("aiohttp", "sqlalchemy", "asyncpg", "litellm")
MODULES = {"reference": "pydantic_settings", "llm": "app.llm", "bootstrap": "app.bootstrap"}

_IMPORT = """
import sys, time
began = time.perf_counter()
import {module}
wall = time.perf_counter() - began
import json, resource
pages = int(open("/proc/self/statm").read().split()[1])
loaded = [name for name in {heavy!r} if name in sys.modules]
print(json.dumps([wall, pages * resource.getpagesize() / 2**20, len(sys.modules), loaded]))
"""

_ANSWER = """
import asyncio, json, sys, time
from bench.cases.ours import request, service
from bench.world import World

async def main():
    async with service(World(**json.loads(sys.argv[1])), warm=False, **json.loads(sys.argv[2])) as llm:
        return (await llm.chat(request(1, key=sys.argv[3] == "replay"))).served_from

served = asyncio.run(main())
loaded = [name for name in {heavy!r} if name in sys.modules]
print(json.dumps([served, time.process_time(), len(sys.modules), loaded]))
"""


async def imports(world: World) -> dict[str, Any]:  # noqa: ARG001  # nothing is asked
    """Return wall time, memory and what was loaded; rounds are interleaved, the best one counts."""
    found: dict[str, list[Any]] = {name: [] for name in MODULES}
    for _ in range(IMPORTS):
        for name, module in MODULES.items():
            found[name].append(await _fresh(_IMPORT.format(module=module, heavy=HEAVY)))
    figures: dict[str, Any] = {}
    for name, rounds in found.items():
        walls, sizes, modules, loaded = zip(*rounds, strict=True)
        figures |= {
            f"{name}_s": min(walls),
            f"{name}_rss_mb": median(sizes),
            f"{name}_modules": modules[0],
            f"{name}_loads": loaded[0],
            f"{name}_heavy": len(loaded[0]),
        }
    return figures


async def answers(world: World) -> dict[str, Any]:
    """Return the whole CPU of a program that gets one replay, or one hit, and ends."""
    stored = {"database_url": world.file("fresh"), "cache_enabled": True}
    async with service(world, **stored) as llm:
        await _answered(llm)
    figures: dict[str, Any] = {}
    for kind, wanted in (("replay", "replay"), ("hit", "cache")):
        rounds = [
            await _fresh(_ANSWER.format(heavy=HEAVY), _as_json(world), json.dumps(stored), kind)
            for _ in range(PROGRAMS)
        ]
        if {served for served, *_ in rounds} != {wanted}:
            raise RuntimeError(f"a fresh process was served from {rounds[0][0]}, not {wanted}")
        figures |= {
            f"{kind}_cpu_s": min(cpu_s for _, cpu_s, *_ in rounds),
            f"{kind}_modules": rounds[0][2],
            f"{kind}_loads": rounds[0][3],
        }
    return figures


async def _answered(llm: LLMService) -> None:
    await llm.chat(request(1))
    await llm.drain()


def _as_json(world: World) -> str:
    return json.dumps({"stub_url": world.stub_url, "directory": world.directory})


async def _fresh(code: str, *arguments: str) -> Any:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await child.communicate()
    if child.returncode:
        raise RuntimeError(err.decode()[-1500:])
    return json.loads(out)
