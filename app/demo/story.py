"""The scenes: what an engineer would try first, each with the proof that it happened."""

import asyncio
from datetime import date

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.exceptions import AgentRunError

from app.demo.screen import Screen
from app.demo.world import World
from app.llm import LLMError, LLMRequest, Message, ResponseFormat
from app.llm.pydanticai import PydanticAiLiteLLMModel

LETTER = (
    "Vendor: Nordlys Rail AS. Thank you for your order of 12 track sensors. Total: 1480.50 EUR, due 2026-12-15, "
    "payable by bank transfer. Questions: our office in Bergen."
)
RUN_COLUMNS = (
    "run",
    "stage",
    "status",
    "served_from",
    "provider",
    "model",
    "sends",
    "in",
    "out",
    "saved",
    "ms",
)


class Invoice(BaseModel):
    """What the agent must return."""

    vendor: str
    total: float
    currency: str
    due: date


class Story:
    """One pass through the main job, on a world of stubs or of real providers."""

    def __init__(self, world: World, screen: Screen) -> None:
        self._world = world
        self._screen = screen
        self._llm = world.llm
        self._summary = LLMRequest(
            messages=(Message.user(f"Summarise in one sentence: {LETTER}"),),
            profile="fast",
            idempotency_key="letter-1/summarise",
            metadata={"stage": "summarise"},
        )

    async def tell(self) -> bool:
        """Play every scene that this world can stage; return whether all of them went well."""
        scenes = [self._agent, self._route, self._stages, self._replay, self._hit, self._conflict, self._sums]
        if self._world.can_fail:
            scenes.insert(5, self._fallback)
        well = True
        with self._llm.scope(workspace_id="demo", pipeline_run_id="letter-1"):
            for scene in scenes:
                try:
                    await scene()
                except (LLMError, AgentRunError) as error:
                    well = False  # a small real model may fail a scene: the next ones are shown all the same
                    self._screen.say(type(error).__name__, str(error))
        return well

    async def _agent(self) -> None:
        self._screen.scene(
            "An agent with structured output",
            "PydanticAI asks for an Invoice, through a tool and back",
        )
        agent = Agent(
            PydanticAiLiteLLMModel(self._llm, profile="balanced"),
            output_type=Invoice,
            name="invoices",
            instructions="Read the letter and return the invoice.",
        )

        @agent.tool_plain
        def exchange_rate(currency: str) -> float:
            """Return how many NOK one unit of the currency costs."""
            return {"EUR": 11.62, "USD": 10.05}.get(currency.upper(), 1.0)

        sends = self._world.sends()
        result = await agent.run(LETTER, metadata={"stage": "extract", "idempotency_key": "letter-1"})
        self._screen.say("Invoice", result.output.model_dump_json())
        self._screen.say("sends", f"{self._world.sends() - sends} {self._world.counted}; the rows they left:")
        await self._rows("extract")

    async def _route(self) -> None:
        self._screen.scene(
            "Why that model", "the decision stored on the agent's first row, each candidate with its reason"
        )
        rows = await self._world.runs(stage="extract")
        self._screen.table(
            rows[0]["route"] if rows else [], "provider", "model", "kept", "reason", "detail", "assumed"
        )

    async def _stages(self) -> None:
        self._screen.scene(
            "A workflow of three stages", "called in-process, one pipeline run, one key a stage"
        )
        topic = LLMRequest(
            messages=(Message.user(f"Is this letter an invoice, a complaint or a question? {LETTER}"),),
            profile="fast",
            idempotency_key="letter-1/classify",
            metadata={"stage": "classify"},
            response_format=ResponseFormat.of_schema(
                {
                    "type": "object",
                    "properties": {"kind": {"enum": ["invoice", "complaint", "question"]}},
                    "required": ["kind"],
                }
            ),
        )
        plan = topic.model_copy(
            update={
                "messages": (Message.user(f"What should accounting do with this letter? {LETTER}"),),
                "response_format": None,
                "idempotency_key": "letter-1/plan",
                "metadata": {"stage": "plan"},
            }
        )
        for request in (topic, self._summary, plan):
            reply = await self._llm.chat(request)
            self._screen.say(str(request.metadata["stage"]), reply.text)
        await self._rows("classify", "summarise", "plan")

    async def _replay(self) -> None:
        self._screen.scene("The same key again", "a replay: the stored answer, nothing is sent")
        sends = self._world.sends()
        reply = await self._llm.chat(self._summary)
        self._screen.say(reply.served_from.value, reply.text)
        self._screen.say("sends", f"{self._world.sends() - sends}; answered by run {reply.run_id[-6:]}")

    async def _hit(self) -> None:
        self._screen.scene(
            "The same prompt without a key", "a hit: the content cache answers, and leaves a row of its own"
        )
        sends = self._world.sends()
        reply = await self._llm.chat(self._summary.model_copy(update={"idempotency_key": None}))
        await self._llm.drain()
        self._screen.say(reply.served_from.value, reply.text)
        self._screen.say("sends", f"{self._world.sends() - sends}; its row:")
        self._screen.table(await self._world.runs(run_id=reply.run_id), *RUN_COLUMNS)

    async def _fallback(self) -> None:
        self._screen.scene(
            "The primary goes down", "refused connections may be retried, then the next candidate is asked"
        )
        await asyncio.to_thread(self._world.take_down)
        reply = await self._llm.chat(
            LLMRequest(
                messages=(Message.user("Translate to Norwegian: thank you for the order"),),
                profile="fast",
                metadata={"stage": "translate"},
            )
        )
        await asyncio.to_thread(self._world.bring_up)
        self._screen.say(f"{reply.provider}:{reply.model}", reply.text)
        self._screen.table(
            await self._world.attempts(reply.run_id),
            "ordinal",
            "provider",
            "model",
            "status",
            "error_code",
            "ms",
        )

    async def _conflict(self) -> None:
        self._screen.scene(
            "The same key for another request", "a conflict: the stored answer is never returned for it"
        )
        sends = self._world.sends()
        other = self._summary.model_copy(update={"messages": (Message.user("Write a poem about sensors."),)})
        try:
            await self._llm.chat(other)
        except LLMError as error:
            self._screen.say(type(error).__name__, error.message)
        self._screen.say("sends", str(self._world.sends() - sends))

    async def _sums(self) -> None:
        await self._llm.drain()
        self._screen.scene(
            "What the ledger says now",
            "summed over llm_runs and llm_attempts, beside what the providers counted",
        )
        sums = await self._world.sums()
        self._screen.table([sums], *sums)

    async def _rows(self, *stages: str) -> None:
        rows = [row for stage in stages for row in await self._world.runs(stage=stage)]
        self._screen.table(rows, *RUN_COLUMNS)
