"""Who answers the examples: the provider that LLM_OLLAMA_API_BASE names, else a stub on loopback that they start."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from app.llm import LLMSettings, load_settings
from app.llm.testing import StubOllama

MODEL = "llama3.2"


@contextmanager
def provider() -> Iterator[LLMSettings]:
    """Yield the settings of the environment; without a provider in them, those of a stub that runs until the end."""
    settings = load_settings()
    if "ollama_api_base" in settings.model_fields_set:
        yield settings
        return
    with StubOllama(models=(MODEL,)) as stub:
        sys.stderr.write("LLM_OLLAMA_API_BASE is not set: a stub on loopback answers.\n")
        profiles = dict.fromkeys(("profile_fast", "profile_balanced", "profile_advanced"), "ollama")
        yield load_settings(ollama_api_base=stub.base_url, ollama_model=MODEL, **profiles)
