"""Work that leaves a trace each time, and the call that is to keep it from running twice."""

import asyncio
from typing import Any

from pydantic import JsonValue

from app.llm.service import LLMService

ORDER = {"to": "Nordlys Rail", "amount": 1480.5}


class Work:
    """What leaves a trace each time."""

    def __init__(self, *returns: JsonValue | BaseException) -> None:
        self.returns = list(returns)
        self.runs = 0
        self.gate: asyncio.Event | None = None
        self.began = asyncio.Event()

    async def __call__(self) -> JsonValue:
        self.runs += 1
        self.began.set()
        if self.gate is not None:
            await self.gate.wait()
        outcome = self.returns.pop(0) if self.returns else f"receipt {self.runs}"
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


async def pay(llm: LLMService, work: Work, arguments: Any = ORDER, **how: Any) -> JsonValue:
    return await llm.once("k1", "pay", arguments, work, **how)
