"""The settings of Ollama."""

from pydantic import Field, SecretStr, field_validator

from app.llm.endpoints import header_pairs
from app.llm.fields import ApiBase, Fields, ModelName


class OllamaFields(Fields):
    """`LLM_OLLAMA_...`."""

    # -- Ollama
    ollama_api_base: ApiBase = "http://localhost:11434"
    """Root of the Ollama server, without `/api`."""
    ollama_model: ModelName = "llama3.2"
    """Model of a bare `ollama` in a profile."""
    ollama_num_ctx: int = Field(default=8192, ge=256, le=10_000_000)
    """Context window that is asked for, in tokens. Always sent: Ollama cuts longer prompts silently."""
    ollama_keep_alive: str | None = None
    """How long Ollama keeps the model loaded, e.g. `5m`, `-1` for ever. Unset: the server's default."""
    ollama_api_key: SecretStr | None = None
    """Bearer token for a reverse proxy in front of Ollama."""
    ollama_headers: SecretStr | None = None
    """Further headers for that proxy, as `Name: value` pairs separated by `;`."""
    ollama_concurrency_limit: int = Field(default=8, ge=1)
    """Sends in flight at once to Ollama."""

    @field_validator("ollama_headers")
    @classmethod
    def _headers_are_pairs(cls, value: SecretStr | None) -> SecretStr | None:
        header_pairs(value)
        return value
