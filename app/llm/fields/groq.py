"""The settings of Groq."""

from pydantic import Field, SecretStr

from app.llm.fields import ApiBase, Fields, ModelName


class GroqFields(Fields):
    """`LLM_GROQ_...`."""

    # -- Groq
    groq_api_key: SecretStr | None = None
    """Key of the Groq API. Without it Groq's candidates are excluded."""
    groq_model: ModelName = "openai/gpt-oss-20b"
    """Model of a bare `groq` in a profile."""
    groq_api_base: ApiBase = "https://api.groq.com/openai/v1"
    """Root of the API, before `/chat/completions`."""
    groq_concurrency_limit: int = Field(default=16, ge=1)
    """Sends in flight at once to Groq."""
