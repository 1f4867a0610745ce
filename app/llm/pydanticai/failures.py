"""Our errors as PydanticAI's, so that FallbackModel and retries see the category that they know.

Errors of the contract, of the ledger and fencing are not translated: another model would not help, so a
FallbackModel must not try one.
"""

import json
from collections.abc import Mapping

from pydantic_ai.exceptions import (
    AgentRunError,
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

from app.llm.errors import (
    LLMAuth,
    LLMBadRequest,
    LLMBadResponse,
    LLMCapability,
    LLMContentFiltered,
    LLMContextExceeded,
    LLMInternal,
    LLMInvalidOutput,
    LLMModelNotFound,
    LLMOverRate,
    LLMProviderError,
    LLMQueueFull,
    LLMRateLimited,
    LLMTimeout,
    LLMUnavailable,
    LLMUnknown,
)

Category = type[ModelRateLimitError | ModelUnavailableError | ModelServerError | ModelRequestRejectedError]

CATEGORIES: Mapping[type[LLMProviderError], Category | None] = {
    LLMUnavailable: ModelUnavailableError,
    LLMTimeout: ModelServerError,
    LLMRateLimited: ModelRateLimitError,
    LLMOverRate: ModelRateLimitError,
    LLMQueueFull: None,
    LLMBadRequest: ModelRequestRejectedError,
    LLMContextExceeded: ModelContextWindowExceededError,
    LLMCapability: ModelRequestRejectedError,
    LLMAuth: ModelAuthenticationError,
    LLMModelNotFound: ModelNotFoundError,
    LLMBadResponse: ModelServerError,
    LLMInvalidOutput: None,
    LLMInternal: None,
    LLMUnknown: None,
}
"""The category of each provider error but `LLMContentFiltered`; None has no better name than ModelAPIError."""

WITHOUT_STATUS: Mapping[type[LLMProviderError], type[ModelAPIError]] = {
    LLMUnavailable: ModelConnectionError,
    LLMTimeout: ModelTimeoutError,
}
"""Other names where the provider sent no HTTP error status: the connection failed, not the server."""

_FIRST_ERROR_STATUS = 400


def model_error(error: LLMProviderError, *, asked: str, in_stream: bool = False) -> AgentRunError:
    """Return the PydanticAI error for `error`; its `body` holds our code, message and run id.

    Args:
        error: What ended the call, after every retry and fallback.
        asked: What the agent calls the model, for errors that name no candidate.
        in_stream: Whether the stream had begun, so that the agent has seen a part of the answer.
    """
    body = {"code": error.code, "message": error.message, "run_id": error.run_id}
    if isinstance(error, LLMContentFiltered):
        return ContentFilterError(error.message, body=json.dumps(body))
    model_name = str(error.facts.get("model") or asked)
    category = CATEGORIES.get(type(error))
    status = error.facts.get("http_status")
    if isinstance(status, int) and status >= _FIRST_ERROR_STATUS:
        return ModelHTTPError.for_category(
            category,
            status_code=status,
            model_name=model_name,
            body=body,
            provider_error_code=error.code,
            retry_after=error.retry_after_s,
            in_stream=in_stream,
        )
    plain: type[ModelAPIError] = WITHOUT_STATUS.get(type(error)) or category or ModelAPIError
    return plain(
        model_name,
        error.message,
        body=body,
        provider_error_code=error.code,
        retry_after=error.retry_after_s,
        in_stream=in_stream,
    )
