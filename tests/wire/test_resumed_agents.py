"""Agents that go on under their key when others answer than before: what was asked counts, not who was to answer."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, FunctionToolset
from pydantic_ai.capabilities import ModelFallback
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.fallback import FallbackModel

from app.bootstrap import build_llm_service
from app.llm.errors import LLMKeyConflict
from app.llm.pydanticai import PydanticAiLiteLLMModel, RecordedToolset
from app.llm.service import LLMService
from app.llm.settings import load_settings
from app.llm.testing import Reply, StubGemini, StubOllama

RUN = {"workspace_id": "acme", "idempotency_key": "k"}
OLLAMA, GEMINI = "ollama:llama3.2", "gemini:gemini-2.5-flash"


class Receipt(BaseModel):
    """What the agent is to give."""

    number: str


class Desk:
    """Two providers, one database, and what the tool did."""

    def __init__(self, ollama: StubOllama, gemini: StubGemini, url: str) -> None:
        self.ollama, self.gemini, self._url = ollama, gemini, url
        self.paid: list[int] = []

    @asynccontextmanager
    async def open(self, *candidates: str) -> AsyncIterator[LLMService]:
        """Start the service as after a restart, with these candidates."""
        settings = load_settings(
            ollama_api_base=self.ollama.base_url,
            gemini_api_base=self.gemini.base_url,
            gemini_api_key="stub-key",
            database_url=self._url,
            profile_balanced=",".join(candidates),
        )
        async with build_llm_service(settings) as llm:
            yield llm

    def clerk(
        self, llm: LLMService, *, model: Any = None, orders: str = "Pay order 1.", **how: Any
    ) -> Agent[Any, Any]:
        """Return the agent, whose tool is recorded."""

        def pay(order: int) -> str:
            """Pay an order."""
            self.paid.append(order)
            return f"R-{order}"

        return Agent(
            model or PydanticAiLiteLLMModel(llm),
            name="clerk",
            instructions=orders,
            output_type=Receipt,
            toolsets=[RecordedToolset(FunctionToolset([pay]), llm)],
            **how,
        )


@pytest.fixture
def desk(db_url: str) -> Iterator[Desk]:
    with StubOllama(models=("llama3.2", "mistral")) as ollama, StubGemini() as gemini:
        yield Desk(ollama, gemini, db_url)


PAY = Reply.tool_call("pay", {"order": 1})
DONE = Reply.tool_call("final_result", {"number": "R-1"})
DOWN = Reply.status(400)


@pytest.mark.parametrize("later", [(GEMINI,), (GEMINI, OLLAMA), ("ollama:mistral",), (OLLAMA, GEMINI)])
async def test_a_run_goes_on_with_other_candidates_than_it_began_with(
    desk: Desk, later: tuple[str, ...]
) -> None:
    desk.ollama.script(PAY, DOWN)
    async with desk.open(OLLAMA) as llm:
        with pytest.raises(ModelHTTPError):
            await desk.clerk(llm).run("Go.", metadata=RUN)
    assert (desk.ollama.sends, desk.paid) == (2, [1])
    desk.ollama.script(DONE)
    desk.gemini.script(DONE)
    async with desk.open(*later) as llm:
        finished = await desk.clerk(llm).run("Go.", metadata=RUN)
    assert (finished.output, desk.paid) == (Receipt(number="R-1"), [1])
    assert desk.ollama.sends + desk.gemini.sends == 3
    async with desk.open(OLLAMA) as llm:
        assert (await desk.clerk(llm).run("Go.", metadata=RUN)).output == finished.output
    assert desk.ollama.sends + desk.gemini.sends == 3


async def test_a_run_whose_second_model_answered_is_replayed_by_the_first(desk: Desk) -> None:
    desk.ollama.always(DOWN)
    desk.gemini.script(PAY, DONE)
    async with desk.open(OLLAMA, GEMINI) as llm:
        pinned = [PydanticAiLiteLLMModel(llm, model=name) for name in (OLLAMA, GEMINI)]
        first = await desk.clerk(llm, model=FallbackModel(*pinned)).run("Go.", metadata=RUN)
        sends = desk.ollama.sends
        again = await desk.clerk(llm, model=FallbackModel(*pinned)).run("Go.", metadata=RUN)
    assert (again.output, desk.paid) == (first.output, [1])
    assert (desk.ollama.sends, desk.gemini.sends) == (sends, 2)


BAD = Reply.tool_call("final_result", {"number": "?"})


def without_number(response: ModelResponse) -> bool:
    """Refuse an answer, as a response handler of PydanticAI does."""
    return any(part.args_as_dict() == {"number": "?"} for part in response.tool_calls)


Chain = Callable[[list[PydanticAiLiteLLMModel]], tuple[Any, list[Any]]]
CHAINS: dict[str, Chain] = {
    "FallbackModel": lambda models: (FallbackModel(*models, fallback_on=without_number), []),
    "ModelFallback": lambda models: (models[0], [ModelFallback(models[1], fallback_on=without_number)]),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
async def test_an_answer_that_was_refused_is_not_given_again_to_the_next_model(
    desk: Desk, chain: Chain
) -> None:
    """Both are requests of one step: the second wants another answer, and a repetition replays both."""
    desk.ollama.script(PAY, BAD)
    desk.gemini.script(DONE)
    async with desk.open(OLLAMA, GEMINI) as llm:
        models = [PydanticAiLiteLLMModel(llm, model=name) for name in (OLLAMA, GEMINI)]
        for _ in range(2):
            model, capabilities = chain(models)
            clerk = desk.clerk(llm, model=model, capabilities=capabilities)
            assert (await clerk.run("Go.", metadata=RUN)).output == Receipt(number="R-1")
    assert (desk.paid, desk.ollama.sends, desk.gemini.sends) == ([1], 2, 1)


async def test_another_question_under_the_key_is_a_conflict_whoever_is_to_answer(desk: Desk) -> None:
    desk.ollama.script(DONE)
    async with desk.open(OLLAMA) as llm:
        await desk.clerk(llm).run("Go.", metadata=RUN)
    async with desk.open(GEMINI) as llm:
        with pytest.raises(LLMKeyConflict) as caught:
            await desk.clerk(llm, orders="Pay order 2.").run("Go.", metadata=RUN)
    assert caught.value.facts["path"] == "$.messages[0].content[0].text"
    assert desk.gemini.sends == 0
