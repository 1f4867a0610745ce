"""The settings of OpenAI."""

from pydantic import Field, SecretStr

from app.llm.fields import ApiBase, Fields, ModelName


class OpenAIFields(Fields):
    """`LLM_OPENAI_...`."""

    # -- OpenAI
    openai_api_key: SecretStr | None = None
    """Key of the OpenAI API. Without it OpenAI's candidates are excluded."""
    openai_model: ModelName = "gpt-4.1-mini"
    """Model of a bare `openai` in a profile."""
    openai_api_base: ApiBase = "https://api.openai.com/v1"
    """Root of the API, before `/chat/completions`; another server that speaks it may stand here."""
    openai_concurrency_limit: int = Field(default=32, ge=1)
    """Sends in flight at once to OpenAI."""
