"""The routing layer's only door."""

from app.llm.candidates import Candidate, ProviderCaps, RouteDecision, RouteEntry, RouteReason
from app.llm.checks import Check, Objection, Rejected
from app.llm.deltas import Delta, TextDelta, ThinkingDelta, ToolCallDelta
from app.llm.errors import LLMBudgetExceeded, LLMContractError, LLMError, LLMLedgerError, LLMProviderError
from app.llm.messages import (
    FilePart,
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
from app.llm.streams import LLMStream
from app.llm.structured.wanted import Checked
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
    "Check",
    "Checked",
    "Delta",
    "FilePart",
    "FinishReason",
    "ImagePart",
    "LLMBudgetExceeded",
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
    "LLMStream",
    "Message",
    "Objection",
    "ProviderCaps",
    "Rejected",
    "ResponseFormat",
    "RouteDecision",
    "RouteEntry",
    "RouteReason",
    "ServedFrom",
    "TextDelta",
    "TextPart",
    "ThinkingDelta",
    "ThinkingPart",
    "TokenUsage",
    "ToolCallDelta",
    "ToolCallPart",
    "ToolChoiceTool",
    "ToolResultPart",
    "ToolSpec",
    "load_settings",
]
