"""Loads LiteLLM, once and without what it would do to the process, and makes our models known to it."""

import logging
import os
import threading
import warnings
from typing import Any

from app.llm.candidates import Candidate

_SWITCHES = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches a price list, and again if that fails
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",  # else it fetches a list of headers
    # else calls to OpenAI leave by a client of their own, which repeats requests and cannot be given ours
    "EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER": "True",
    "LITELLM_MODE": "PRODUCTION",  # else it loads the .env file of the working directory into the process
}
_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")
_lock = threading.Lock()


def load_litellm() -> Any:
    """Import LiteLLM, once for all threads, without letting it touch the network, the environment or the logs.

    Takes about 3 s: call it in a thread.
    """
    with _lock:
        os.environ.update(_SWITCHES)
        import litellm  # noqa: PLC0415  # lazy: it costs 3 s and 160 MiB

        with (
            warnings.catch_warnings()
        ):  # of its types; LiteLLM filters them itself, while its own filters last
            warnings.simplefilter("ignore")
            litellm.ModelResponse()  # else its classes are finished within a call
            litellm.ModelResponseStream(choices=[{"delta": {}}])
        _forget_caching(litellm)
        litellm.suppress_debug_info = True
        litellm.telemetry = False
        for name in _LOGGERS:
            logging.getLogger(name).disabled = True  # they quote prompts, answers and headers
        return litellm


def load_tokenizer() -> None:
    """Import what LiteLLM counts tokens with, 40 MiB that `acompletion` alone needs, and take back the variable it sets."""
    with _lock:
        directory = os.environ.get("TIKTOKEN_CACHE_DIR")
        from litellm.litellm_core_utils import default_encoding  # noqa: F401, PLC0415  # lazy, as above

        os.environ.pop("TIKTOKEN_CACHE_DIR", None)
        if directory is not None:
            os.environ["TIKTOKEN_CACHE_DIR"] = directory


def make_known(library: Any, name: str, candidate: Candidate) -> None:
    """Tell LiteLLM of a model, which it else asks Ollama about, synchronously, or degrades the requests of.

    Args:
        library: LiteLLM, loaded.
        name: The model as LiteLLM calls it, with its prefix.
        candidate: The model as we know it.
    """
    provider, _, bare = name.partition("/")
    known = library.model_cost.get(name) or library.model_cost.get(bare, {})
    if name in library.model_cost or known.get("litellm_provider") == provider:
        return
    facts = {
        "litellm_provider": provider,
        "mode": "chat",
        "max_input_tokens": candidate.caps.max_context_tokens,
        "supports_system_messages": True,
        "supports_function_calling": candidate.caps.supports_tools,
        "supports_tool_choice": candidate.caps.supports_forced_tool_choice,
        "supports_response_schema": candidate.caps.supports_json_schema,
        "supports_vision": candidate.caps.supports_vision,
        "supports_reasoning": True,
    }
    library.model_cost[name] = facts  # first, or register_model itself would ask Ollama
    library.register_model({name: facts})


def _forget_caching(litellm: Any) -> None:
    """Undo what the Gemini module does when it is imported: every later call would be logged in a thread."""
    from litellm.llms.vertex_ai.context_caching import vertex_ai_context_caching  # noqa: F401, PLC0415  # lazy

    if litellm.cache is None:
        for callbacks in (litellm.input_callback, litellm.success_callback, litellm._async_success_callback):  # noqa: SLF001
            callbacks[:] = [callback for callback in callbacks if callback != "cache"]
