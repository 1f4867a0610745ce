"""A worker whose children run an agent of three steps and two tools, and die at a point of it.

`python -m tests.support.durable_worker`; otherwise as `tests.support.worker`.
"""

import importlib
from pathlib import Path
from typing import Any

from pydantic_ai import Agent, FunctionToolset

from app.core.clock import SystemClock
from app.llm.candidates import Candidate
from app.llm.errors import LLMError
from app.llm.messages import ToolCallPart
from app.llm.ports import ProviderReply
from app.llm.pydanticai import PydanticAiLiteLLMModel, RecordedToolset
from app.llm.testing.client import text_reply
from app.llm.types import FinishReason, LLMRequest, TokenUsage
from tests.support.service import rig
from tests.support.worker import JOBS, Counted, Fate, serve

ORDERS = 2
USAGE = TokenUsage(input_tokens=10, output_tokens=5)


class Paying(Counted):
    """A model that asks to pay one order after another, and then says what came of it."""

    async def send(self, request: LLMRequest, candidate: Candidate, **how: Any) -> ProviderReply:
        await super().send(request, candidate, **how)
        results = [
            part.content for turn in request.messages for part in turn.content if part.type == "tool_result"
        ]
        if len(results) == ORDERS:
            return text_reply(", ".join(results))
        asks = ToolCallPart(id="any", name="pay", arguments={"order": len(results) + 1})
        return ProviderReply(parts=(asks,), finish_reason=FinishReason.TOOL_CALLS, usage=USAGE)


def note(file: str, line: str) -> None:
    """Add a line to a file that all processes append to."""
    with Path(file).open("a") as lines:
        lines.write(f"{line}\n")


async def pay_orders(
    *, url: str, file: str, key: str, at: str, spool: str, on_abandoned: str = "retry", force: bool = False
) -> Any:
    """Run the agent under a key and be killed at a point, if one is named; tools append to `file`.paid."""
    fate, client = Fate(at), Paying(file)
    client._hook = fate
    values = {"on_abandoned": on_abandoned, "profile_balanced": "ollama:llama3.2", "spool_dir": spool}
    async with rig(url, client, clock=SystemClock(), **values) as rigged:
        ledger = rigged.ledger
        ledger.before, ledger.after = map(fate.at_transitions, ("before", "after"))

        async def pay(order: int) -> dict[str, str]:
            """Pay an order."""
            fate("begin")
            note(f"{file}.paid", f"{key} {order}")
            fate("paid")
            return {"receipt": f"R-{order}"}

        agent = Agent(
            PydanticAiLiteLLMModel(rigged.llm),
            name="clerk",
            toolsets=[RecordedToolset(FunctionToolset([pay]), rigged.llm)],
        )
        try:
            result = await agent.run(
                "Pay what is due.",
                metadata={"idempotency_key": key},
                model_settings={"llm_force_new_execution": True} if force else {},  # type: ignore[typeddict-unknown-key]
            )
        except LLMError as error:
            return {"error": error.code, "run": error.run_id}
        await rigged.llm.drain()
        used = result.usage
        return {"output": result.output, "tokens": used.total_tokens, "cost": float(used.cost or 0)}


if __name__ == "__main__":
    for name in ("schema", "executors.sqlite", "executors.postgres"):
        importlib.import_module(f"app.llm.persistence.{name}")  # once, not in each child
    JOBS[pay_orders.__name__] = pay_orders
    serve()
