"""What Ollama says of itself, read: which models it has, and what one of them can do."""

from collections.abc import Mapping
from typing import Any

from app.llm.candidates import ModelFacts
from app.llm.endpoints import header_pairs
from app.llm.settings import LLMSettings

TAGS, SHOW = "/api/tags", "/api/show"  # https://docs.ollama.com/api


def headers(settings: LLMSettings) -> dict[str, str]:
    """Return the headers of a request that is no call: those of a proxy in front of Ollama, and its token."""
    key = settings.ollama_api_key.get_secret_value() if settings.ollama_api_key else None
    bearer = {"Authorization": f"Bearer {key}"} if key else {}
    return {"Content-Type": "application/json", **bearer, **header_pairs(settings.ollama_headers)}


def has_model(tags: Any, model: str) -> bool:
    """Return whether an answer of /api/tags lists a model."""
    listed = tags.get("models") if isinstance(tags, Mapping) else None
    names = {each.get("name") for each in listed or () if isinstance(each, Mapping)}
    return (model if ":" in model.rpartition("/")[2] else f"{model}:latest") in names or model in names


def facts_of(shown: Any) -> ModelFacts:
    """Return what an answer of /api/show says; what it does not say, or says otherwise than expected, is unknown."""
    if not isinstance(shown, Mapping):
        return ModelFacts()
    info, said = shown.get("model_info"), shown.get("capabilities")
    able = said if isinstance(said, list) else None
    return ModelFacts(
        context_tokens=_context_length(info) if isinstance(info, Mapping) else None,
        tools=None if able is None else "tools" in able,
        vision=None if able is None else "vision" in able,
    )


def _context_length(info: Mapping[str, Any]) -> int | None:
    """Return the window that the model was made for; its key begins with the name of the architecture."""
    length = info.get(f"{info.get('general.architecture')}.context_length")
    return length if isinstance(length, int) and length > 0 else None


def weights_of(tags: Any, model: str) -> str | None:
    """Return the digest that an answer of /api/tags gives for a model; None where it gives none."""
    models = tags.get("models") if isinstance(tags, Mapping) else None
    listed = models if isinstance(models, list) else []
    digests = {each.get("name"): each.get("digest") for each in listed if isinstance(each, Mapping)}
    tagged = model if ":" in model.rpartition("/")[2] else f"{model}:latest"
    digest = digests.get(tagged, digests.get(model))
    return digest if isinstance(digest, str) and digest else None
