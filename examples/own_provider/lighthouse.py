"""A provider of one's own: the language models of the Lighthouse, behind a server that speaks OpenAI's chat completions.

Once this package is installed beside Signalbox, `lighthouse` and `lighthouse:MODEL` may stand in every profile, and
`LLM_LIGHTHOUSE_API_KEY`, `_MODEL`, `_API_BASE` and `_CONCURRENCY_LIMIT` are settings like all others.
"""

from typing import ClassVar

from app.llm import LLMSettings
from app.llm.candidates import ProviderCaps
from app.llm.providers import OwnProvider

WINDOWS = {"beam-small": 32_768, "beam-large": 131_072}


class Lighthouse(OwnProvider):
    """Knows its models' windows; all else is as with OpenAI."""

    name: ClassVar[str] = "lighthouse"
    default_model: ClassVar[str] = "beam-small"
    default_api_base: ClassVar[str] = "http://localhost:8090/v1"

    def caps(self, settings: LLMSettings, model: str) -> ProviderCaps:
        """Return what `model` can do."""
        known = {"max_context_tokens": WINDOWS[model], "assumed": False} if model in WINDOWS else {}
        return super().caps(settings, model).model_copy(update={"supports_json_schema": True, **known})
