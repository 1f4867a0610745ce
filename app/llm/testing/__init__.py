"""The door of the provider stubs: agents are tested against real sockets, without a model or a bill."""

from app.llm.testing.anthropic import StubAnthropic
from app.llm.testing.content import Call, End, Failure, Thought
from app.llm.testing.gate import Gate
from app.llm.testing.gemini import StubGemini
from app.llm.testing.ollama import StubOllama
from app.llm.testing.openai import StubOpenAI
from app.llm.testing.record import Received
from app.llm.testing.reply import Reply

__all__ = [
    "Call",
    "End",
    "Failure",
    "Gate",
    "Received",
    "Reply",
    "StubAnthropic",
    "StubGemini",
    "StubOllama",
    "StubOpenAI",
    "Thought",
]
