"""What a call cost. Unknown is None, never zero: a sum over unknown prices must be able to say so."""

from app.llm.types import LLMProvider


def cost_usd(provider: LLMProvider) -> float | None:
    """Return the dollars of one send: nothing for models on one's own machines, unknown for the others."""
    return 0.0 if provider is LLMProvider.OLLAMA else None
