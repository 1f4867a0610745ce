"""An agent that is killed after it has sent an invoice, and does not send it again when it is started again.

Start it twice. The first start dies by SIGKILL as soon as the tool's result is in the ledger. The second replays the
first request and the tool, pays for the second request only, and says so; a third pays for nothing.
"""

import os
import signal
from pathlib import Path

from pydantic_ai import Agent, FunctionToolset
from pydantic_ai.messages import ModelResponse

from app.bootstrap import build_llm_service
from app.llm import LLMService
from app.llm.pydanticai import PydanticAiLiteLLMModel, RecordedToolset

from provider import provider, run

SENT = Path("invoices.txt")
sent_now: list[str] = []


def send_invoice(customer: str) -> str:
    """Send this month's invoice to the customer."""
    with SENT.open("a") as invoices:
        invoices.write(f"to {customer}\n")
    sent_now.append(customer)
    return f"sent to {customer}"


async def bill(llm: LLMService) -> list[ModelResponse]:
    """Run the agent under its key, and die between two steps if the invoice was sent by this very process."""
    agent = Agent(
        PydanticAiLiteLLMModel(llm, profile="balanced"),
        name="billing",
        instructions="Use the tool.",
        toolsets=[RecordedToolset(FunctionToolset([send_invoice]), llm)],
    )
    key = {"idempotency_key": "invoice-2026-11"}
    async with agent.iter("Send the invoice. Customer: Nordlys Rail", metadata=key) as steps:
        async for step in steps:
            if sent_now and Agent.is_model_request_node(step):
                print("the invoice is sent; killed before the next request", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        return [each for each in steps.all_messages() if isinstance(each, ModelResponse)]


def tell(answers: list[ModelResponse]) -> None:
    """Write what was replayed and what was paid."""
    for number, answer in enumerate(answers, 1):
        facts = answer.metadata or {}
        tokens = sum(facts["original_usage"].values())
        how = "paid now" if facts["served_from"] == "live" else "paid before"
        print(f"request {number}: {facts['served_from']}, {tokens} tokens {how}")
    sent = SENT.read_text().count("to ") if SENT.exists() else "no"
    print(f"send_invoice: {'ran' if sent_now else 'replayed'}, {SENT} has {sent} invoice")
    print(answers[-1].text)


async def main() -> None:
    """Run the agent to its end, if it gets there."""
    with provider() as settings:
        async with build_llm_service(settings) as llm:
            with llm.scope(workspace_id="examples", stage="billing"):
                tell(await bill(llm))


if __name__ == "__main__":
    run(main())
