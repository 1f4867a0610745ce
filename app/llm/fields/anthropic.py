"""The settings of Anthropic."""

from typing import Literal

from pydantic import Field, SecretStr

from app.llm.fields import ApiBase, Fields, ModelName


class AnthropicFields(Fields):
    """`LLM_ANTHROPIC_...`."""

    # -- Anthropic
    anthropic_api_key: SecretStr | None = None
    """Key of the Anthropic API. Without it Anthropic's candidates are excluded."""
    anthropic_model: ModelName = "claude-haiku-4-5"
    """Model of a bare `anthropic` in a profile."""
    anthropic_api_base: ApiBase = "https://api.anthropic.com"
    """Root of the API, before `/v1/messages`."""
    anthropic_max_tokens: int = Field(default=8192, ge=1, le=1_000_000)
    """Tokens of an answer at most where a request says nothing: Anthropic wants to be told."""
    anthropic_prompt_cache: Literal["5m", "1h"] | None = None
    """How long Anthropic keeps the system prompt and the conversation so far, to charge less for reading them again: `5m` or `1h`. Unset: not at all. What is written to it costs 1.25 times as much as plain input, or twice as much for `1h`, and costs say so."""
    anthropic_concurrency_limit: int = Field(default=32, ge=1)
    """Sends in flight at once to Anthropic."""
