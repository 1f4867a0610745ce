"""Errors as an agent sees them: provider errors by PydanticAI's categories, contract errors as they are."""

import pickle

import pytest
from pydantic_ai import Agent
from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    ModelServerError,
    ModelTimeoutError,
    ModelUnavailableError,
)
from pydantic_ai.models.fallback import FallbackModel

from app.llm import errors
from app.llm.errors import (
    LLMContentFiltered,
    LLMContractError,
    LLMError,
    LLMFenced,
    LLMLedgerBusy,
    LLMLedgerUnavailable,
    LLMNoCandidate,
    LLMProviderError,
    LLMRateLimited,
    LLMUnavailable,
)
from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.pydanticai.failures import CATEGORIES, model_error
from tests.unit.llm.pydanticai.scripted import ScriptedService, answer


@pytest.mark.parametrize(
    ("error", "status", "category"),
    [
        (errors.LLMUnavailable, 503, ModelUnavailableError),
        (errors.LLMUnavailable, None, ModelConnectionError),
        (errors.LLMTimeout, None, ModelTimeoutError),
        (errors.LLMTimeout, 504, ModelServerError),
        (errors.LLMRateLimited, 429, ModelRateLimitError),
        (errors.LLMOverRate, None, ModelRateLimitError),
        (errors.LLMBadRequest, 400, ModelRequestRejectedError),
        (errors.LLMContextExceeded, None, ModelContextWindowExceededError),
        (errors.LLMContextExceeded, 400, ModelContextWindowExceededError),
        (errors.LLMCapability, 400, ModelRequestRejectedError),
        (errors.LLMAuth, 401, ModelAuthenticationError),
        (errors.LLMModelNotFound, 404, ModelNotFoundError),
        (errors.LLMBadResponse, 200, ModelServerError),
        (errors.LLMInvalidOutput, 200, ModelAPIError),
        (errors.LLMInternal, None, ModelAPIError),
        (errors.LLMUnknown, 418, ModelHTTPError),
    ],
)
def test_each_provider_error_has_the_category_that_pydantic_ai_knows(
    error: type[LLMProviderError], status: int | None, category: type[ModelAPIError]
) -> None:
    ours = error("it went wrong", provider="ollama", model="llama3.2", http_status=status, run_id="run-1")
    theirs = model_error(ours, asked="balanced")
    assert isinstance(theirs, category)
    assert isinstance(theirs, ModelHTTPError) is (status is not None and status >= 400)
    assert theirs.model_name == "llama3.2"
    assert theirs.provider_error_code == ours.code
    assert theirs.body == {"code": ours.code, "message": "it went wrong", "run_id": "run-1"}
    assert type(pickle.loads(pickle.dumps(theirs))) is type(theirs)  # noqa: S301  # our own bytes


def test_no_provider_error_is_forgotten() -> None:
    direct = set(LLMProviderError.__subclasses__())
    further = {each for kind in direct for each in kind.__subclasses__()}
    assert set(CATEGORIES) | {LLMContentFiltered} == direct | further


async def test_a_provider_error_names_the_run_keeps_the_wait_and_its_cause() -> None:
    ours = LLMRateLimited("slow down", model="llama3.2", http_status=429, retry_after_s=7.0, run_id="run-9")
    agent = Agent(PydanticAiLiteLLMModel(ScriptedService(ours)))
    with pytest.raises(ModelRateLimitError, match="run-9") as caught:
        await agent.run("x")
    assert caught.value.retry_after == 7.0
    assert caught.value.__cause__ is ours


async def test_a_filtered_answer_is_pydantic_ais_own_error_and_no_reason_to_ask_another_model() -> None:
    agent = Agent(
        FallbackModel(
            PydanticAiLiteLLMModel(ScriptedService(LLMContentFiltered("filtered", run_id="run-1"))),
            PydanticAiLiteLLMModel(ScriptedService(answer("never"))),
        )
    )
    with pytest.raises(ContentFilterError, match="filtered"):
        await agent.run("x")


async def test_a_fallback_model_takes_over_from_a_provider_error() -> None:
    first = ScriptedService(LLMUnavailable("refused", provider="ollama", model="llama3.2"))
    second = ScriptedService(answer("Paris."))
    agent = Agent(FallbackModel(PydanticAiLiteLLMModel(first), PydanticAiLiteLLMModel(second)))
    assert (await agent.run("x")).output == "Paris."
    assert (len(first.requests), len(second.requests)) == (1, 1)


@pytest.mark.parametrize(
    "error", [LLMContractError, LLMNoCandidate, LLMFenced, LLMLedgerBusy, LLMLedgerUnavailable]
)
async def test_a_fallback_model_does_not_hide_an_error_of_contract_or_ledger(error: type[LLMError]) -> None:
    ours = error("not allowed")
    second = ScriptedService(answer("never"))
    agent = Agent(
        FallbackModel(PydanticAiLiteLLMModel(ScriptedService(ours)), PydanticAiLiteLLMModel(second))
    )
    with pytest.raises(error) as caught:
        await agent.run("x")
    assert caught.value is ours
    assert second.requests == []
