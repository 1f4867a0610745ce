"""What Ollama says of itself, read: which models it has, what one of them can do, and how far a download is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.llm.candidates import ModelFacts
from app.llm.endpoints import header_pairs
from app.llm.providers.listings import Inquiry, ListedModel, entries, positive
from app.llm.settings import LLMSettings

TAGS, SHOW, VERSION = "/api/tags", "/api/show", "/api/version"  # https://docs.ollama.com/api
PULL, GENERATE = "/api/pull", "/api/generate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One line of a download; None where it says nothing."""

    status: str
    layer: str | None = None
    """Digest of the part that is loaded; the totals are those of this part."""
    done_bytes: int = 0
    total_bytes: int | None = None
    error: str | None = None


def headers(settings: LLMSettings) -> dict[str, str]:
    """Return the headers of a request that is no call: those of a proxy in front of Ollama, and its token."""
    key = settings.ollama_api_key.get_secret_value() if settings.ollama_api_key else None
    bearer = {"Authorization": f"Bearer {key}"} if key else {}
    return {"Content-Type": "application/json", **bearer, **header_pairs(settings.ollama_headers)}


def inquiry(settings: LLMSettings, api_base: str, path: str) -> Inquiry:
    """Return how Ollama is asked for one of the paths above."""
    return Inquiry(url=api_base + path, headers=headers(settings))


def has_model(tags: Any, model: str) -> bool:
    """Return whether an answer of /api/tags lists a model."""
    try:
        return any(model in each.names for each in listed(tags))
    except ValueError:
        return False


def listed(tags: Any) -> tuple[ListedModel, ...]:
    """Return the models of an answer of /api/tags; the tag `latest` may be left out.

    Raises:
        ValueError: It is no such answer.
    """
    return tuple(
        ListedModel(
            names=tuple(dict.fromkeys((name, name.removesuffix(":latest")))),
            size_bytes=positive(each.get("size")),
        )
        for each in entries(tags, "models")
        if (name := str(each.get("name")))
    )


def progress_of(said: Any) -> Progress:
    """Return what a line of /api/pull says.

    Raises:
        ValueError: It is no such line.
    """
    if not isinstance(said, Mapping) or not isinstance(said.get("status", said.get("error")), str):
        raise ValueError("neither a status nor an error is in it")  # noqa: TRY004  # the answer is wrong
    error = said.get("error")
    return Progress(
        status=str(said.get("status", "")),
        layer=str(said["digest"]) if said.get("digest") else None,
        done_bytes=positive(said.get("completed")) or 0,
        total_bytes=positive(said.get("total")),
        error=None if error is None else str(error),
    )


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
