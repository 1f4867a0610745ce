"""An agent that calls a tool; each of its requests is a row of the ledger, and a second start replays them all."""

from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse

from app.bootstrap import build_llm_service
from app.llm.pydanticai import PydanticAiLiteLLMModel

from provider import provider, run

NOK = {"EUR": 11.62, "USD": 10.05}


async def main() -> None:
    """Ask one question that needs a tool and list the requests that it took."""
    with provider() as settings:
        async with build_llm_service(settings) as llm:
            agent = Agent(
                PydanticAiLiteLLMModel(llm, profile="balanced"), name="rates", instructions="Use the tools."
            )

            @agent.tool_plain
            def exchange_rate(currency: str) -> str:
                """Return how many NOK one unit of the currency costs, for example of EUR."""
                print(f"tool: exchange_rate({currency!r})")
                return f"{NOK.get(currency.upper(), 1.0)} NOK"

            with llm.scope(workspace_id="examples", stage="rates"):
                result = await agent.run(
                    "How many NOK is one EUR? Currency: EUR", metadata={"idempotency_key": "rate-1"}
                )
            print(result.output)
            answers = [each for each in result.all_messages() if isinstance(each, ModelResponse)]
            for number, answer in enumerate(answers, 1):
                facts = answer.metadata or {}
                print(
                    f"request {number}: {facts['served_from']}, {answer.model_name}, run {facts['llm_run_id']}"
                )


if __name__ == "__main__":
    run(main())
