"""The settings of Gemini."""

from pydantic import AliasChoices, Field, SecretStr, field_validator

from app.llm.fields import ApiBase, Fields, ModelName


class GeminiFields(Fields):
    """`LLM_GEMINI_...`."""

    # -- Gemini
    gemini_api_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("LLM_GEMINI_API_KEY", "GEMINI_API_KEY", "gemini_api_key")
    )
    """Key of the Gemini API; `GEMINI_API_KEY` is read too. Without it Gemini candidates are excluded."""
    gemini_model: ModelName = "gemini-2.5-flash"
    """Model of a bare `gemini` in a profile."""
    gemini_api_base: ApiBase = "https://generativelanguage.googleapis.com/v1beta"
    """Root of the Gemini API; ends in `/v1beta`."""
    gemini_concurrency_limit: int = Field(default=32, ge=1)
    """Sends in flight at once to Gemini."""

    @field_validator("gemini_api_base")
    @classmethod
    def _base_has_version(cls, value: str) -> str:
        if not value.endswith("/v1beta"):
            raise ValueError("must end in /v1beta")
        return value
