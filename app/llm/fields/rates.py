"""The settings of rates: how often each provider may be asked, and who counts."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from app.llm.fields import Fields

PerMinute = Annotated[int, Field(ge=1, le=1_000_000_000)]


class RateFields(Fields):
    """`LLM_<PROVIDER>_REQUESTS_PER_MINUTE`, `LLM_<PROVIDER>_TOKENS_PER_MINUTE`."""

    # -- rates
    shared_rates: bool = False
    """Whether all processes on one ledger count requests and tokens together, in its database. Otherwise each counts its own."""
    concurrency_min: int = Field(default=1, ge=1)
    """Sends in flight at once that a provider is always given. 429, 503 and timeouts halve what it is given, answers raise it again up to its `..._CONCURRENCY_LIMIT`; a number as high as that changes nothing."""
    ollama_requests_per_minute: PerMinute | None = None
    """Requests that may be sent to Ollama in any minute, a tenth of them at once. Unset: no bound."""
    ollama_tokens_per_minute: PerMinute | None = None
    """Tokens of prompts and answers that Ollama may be asked for in any minute, by estimate until they are known. Unset: no bound."""
    gemini_requests_per_minute: PerMinute | None = None
    """Requests that may be sent to Gemini in any minute, a tenth of them at once. Unset: no bound."""
    gemini_tokens_per_minute: PerMinute | None = None
    """Tokens of prompts and answers that Gemini may be asked for in any minute, by estimate until they are known. Unset: no bound."""
    openai_requests_per_minute: PerMinute | None = None
    """Requests that may be sent to OpenAI in any minute, a tenth of them at once. Unset: no bound."""
    openai_tokens_per_minute: PerMinute | None = None
    """Tokens of prompts and answers that OpenAI may be asked for in any minute, by estimate until they are known. Unset: no bound."""
    anthropic_requests_per_minute: PerMinute | None = None
    """Requests that may be sent to Anthropic in any minute, a tenth of them at once. Unset: no bound."""
    anthropic_tokens_per_minute: PerMinute | None = None
    """Tokens of prompts and answers that Anthropic may be asked for in any minute, by estimate until they are known. Unset: no bound."""
    groq_requests_per_minute: PerMinute | None = None
    """Requests that may be sent to Groq in any minute, a tenth of them at once. Unset: no bound."""
    groq_tokens_per_minute: PerMinute | None = None
    """Tokens of prompts and answers that Groq may be asked for in any minute, by estimate until they are known. Unset: no bound."""

    @model_validator(mode="after")
    def _shared_where_there_is_a_ledger(self) -> Self:
        if self.shared_rates and not getattr(self, "persist_runs", True):
            raise ValueError(
                "LLM_SHARED_RATES=true: needs LLM_PERSIST_RUNS=true: processes count together in the ledger's database"
            )
        return self
