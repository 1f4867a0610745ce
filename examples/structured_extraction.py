"""An agent that returns a typed object; the second start of this program replays the answer instead of paying again."""

from datetime import date

from pydantic import BaseModel
from pydantic_ai import Agent

from app.bootstrap import build_llm_service
from app.llm.pydanticai import PydanticAiLiteLLMModel

from provider import provider, run

LETTER = (
    "Vendor: Nordlys Rail AS. Thank you for your order of 12 track sensors. Total: 1480.50 EUR, due 2026-12-15, "
    "payable by bank transfer."
)


class Invoice(BaseModel):
    """What is wanted of a letter."""

    vendor: str
    total: float
    currency: str
    due: date


async def main() -> None:
    """Extract one invoice and say where the answer came from."""
    with provider() as settings:
        async with build_llm_service(settings) as llm:
            agent = Agent(
                PydanticAiLiteLLMModel(llm, profile="balanced"),
                output_type=Invoice,
                name="invoices",
                instructions="Read the letter and return the invoice.",
            )
            with llm.scope(workspace_id="examples", stage="extract"):
                result = await agent.run(LETTER, metadata={"idempotency_key": "letter-1"})
            print(result.output.model_dump_json())
            facts = result.response.metadata or {}
            print(f"served from: {facts['served_from']}, run {facts['llm_run_id']}")


if __name__ == "__main__":
    run(main())
