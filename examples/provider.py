"""Who answers the examples: the provider that LLM_OLLAMA_API_BASE names, else a stub on loopback that they start."""

import asyncio
import logging
import os
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager

from app.llm import LLMError, LLMSettings, load_settings
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


def run(program: Coroutine[object, object, None]) -> None:
    """Run an example to its end; a failure that its user can mend is one line, and exit code 1."""
    logging.getLogger("signalbox").addHandler(logging.NullHandler())  # else its warnings go to stderr
    try:
        asyncio.run(program)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush, at exit
        sys.exit("stopped: nobody reads the output any more")
    except Exception as error:
        fault = error if isinstance(error, LLMError) else error.__cause__  # of one of PydanticAI
        if not isinstance(fault, LLMError):
            raise
        sys.exit(fault.message)
