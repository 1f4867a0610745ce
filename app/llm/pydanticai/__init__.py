"""The door for PydanticAI: a model whose provider is chosen per request, by the router."""

from app.llm.pydanticai.model import ChatService, PydanticAiLiteLLMModel
from app.llm.pydanticai.recorded import OnceService, RecordedToolset
from app.llm.pydanticai.settings import LLMModelSettings, SettingNotHonoured
from app.llm.pydanticai.steps import NestedRuns

__all__ = [
    "ChatService",
    "LLMModelSettings",
    "NestedRuns",
    "OnceService",
    "PydanticAiLiteLLMModel",
    "RecordedToolset",
    "SettingNotHonoured",
]
