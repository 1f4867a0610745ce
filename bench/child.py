"""A process that hosts cases: reads one order a line, measures, answers in one line of JSON. Ends with its input."""

import asyncio
import json
import os
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from importlib import import_module
from itertools import count
from typing import Any, TextIO

from bench.cases import CASES
from bench.measure import Call, freeze, measure, warm_up
from bench.probes import PROBES
from bench.world import World


class Host:
    """The cases that are open in this process; each stays open until the end, idle while others are measured."""

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        self._world = world
        self._stack = stack
        self._open: dict[str, Call] = {}
        self._faults: dict[str, str] = {}
        self._numbers = count(1)

    async def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return what was ordered, or the text of what went wrong."""
        try:
            match order["kind"]:
                case "open":
                    return await self._opened(order["names"])
                case "load":
                    import_module("litellm")
                    return {"loaded": True}
                case "probe":
                    return await PROBES[order["name"]].run(self._world)
                case _:
                    return await self._cell(order["name"], order["in_flight"], order["seconds"])
        except Exception:  # noqa: BLE001  # it is shown where the figure would have been
            return {"fault": _text()}

    async def _opened(self, names: list[str]) -> dict[str, Any]:
        """Open cases; one that cannot be opened says so in each of its cells."""
        for name in names:
            try:
                self._open[name] = await self._stack.enter_async_context(CASES[name].open(self._world))
                await warm_up(self._open[name], self._numbers, 1)
            except Exception:  # noqa: BLE001  # as above
                self._faults[name] = _text()
        freeze()
        return {"opened": len(names) - len(self._faults)}

    async def _cell(self, name: str, in_flight: int, seconds: float) -> dict[str, Any]:
        if name in self._faults:
            return {"fault": self._faults[name]}
        call = self._open[name]
        await warm_up(call, self._numbers, in_flight)
        cell = await measure(
            call, self._numbers, in_flight=in_flight, seconds=seconds, server_pid=self._world.postgres_pid
        )
        return asdict(cell)


def _text() -> str:
    return traceback.format_exc(limit=-6).strip()


async def _main(world: World, answers: TextIO) -> None:
    async with AsyncExitStack() as stack:
        host = Host(world, stack)
        async for order in _orders():
            answers.write(json.dumps(await host.obey(order)) + "\n")
            answers.flush()


async def _orders() -> AsyncIterator[dict[str, Any]]:
    async with _stdin() as lines:
        while line := await lines.readline():
            yield json.loads(line)


@asynccontextmanager
async def _stdin() -> AsyncIterator[asyncio.StreamReader]:
    lines = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    try:
        yield lines
    finally:
        transport.close()


if __name__ == "__main__":
    own_stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    asyncio.run(_main(World(**json.loads(sys.argv[1])), own_stdout))
