"""The routing layer's only door."""

from app.llm.candidates import Candidate, ProviderCaps, RouteDecision, RouteEntry, RouteReason
from app.llm.errors import LLMContractError, LLMError, LLMLedgerError, LLMProviderError
from app.llm.messages import (
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolChoiceTool,
    ToolResultPart,
    ToolSpec,
)
from app.llm.service import LLMService
from app.llm.settings import LLMSettings, load_settings
from app.llm.types import (
    Attempt,
    CacheMode,
    FinishReason,
    LLMCallContext,
    LLMConstraints,
    LLMProfile,
    LLMProvider,
    LLMRequest,
    LLMResponse,
    ServedFrom,
    TokenUsage,
)

__all__ = [
    "Attempt",
    "CacheMode",
    "Candidate",
    "FinishReason",
    "ImagePart",
    "LLMCallContext",
    "LLMConstraints",
    "LLMContractError",
    "LLMError",
    "LLMLedgerError",
    "LLMProfile",
    "LLMProvider",
    "LLMProviderError",
    "LLMRequest",
    "LLMResponse",
    "LLMService",
    "LLMSettings",
    "Message",
    "ProviderCaps",
    "ResponseFormat",
    "RouteDecision",
    "RouteEntry",
    "RouteReason",
    "ServedFrom",
    "TextPart",
    "ThinkingPart",
    "TokenUsage",
    "ToolCallPart",
    "ToolChoiceTool",
    "ToolResultPart",
    "ToolSpec",
    "load_settings",
]
