"""What a provider of a user's own starts from: a server that speaks OpenAI's chat completions."""

from typing import Any, ClassVar

from pydantic import JsonValue

from app.llm.candidates import ProviderCaps
from app.llm.endpoints import is_local_url
from app.llm.providers.listings import Inquiry, ListedModel, openai_listed, openai_listing
from app.llm.providers.openai_messages import openai_options
from app.llm.settings import LLMSettings
from app.llm.types import LLMRequest, WireFormat


class OwnProvider:
    """A provider that a package registers in the entry-point group `signalbox.providers`, under `name`.

    Its settings are `LLM_<NAME>_API_KEY`, `_MODEL`, `_API_BASE`, `_CONCURRENCY_LIMIT`, `_REQUESTS_PER_MINUTE` and
    `_TOKENS_PER_MINUTE`. Override what is different; an instance is made once, without arguments.
    """

    name: ClassVar[str]
    """The name of the entry point: small letters, digits and underscores."""
    default_model: ClassVar[str]
    """What `LLM_<NAME>_MODEL` says if nobody sets it."""
    default_api_base: ClassVar[str]
    """Likewise, the root of the API, before `/chat/completions`."""
    needs_key: ClassVar[bool] = True
    """Whether it is no candidate without a key."""
    wire: WireFormat = WireFormat.OPENAI
    """Whose JSON it speaks."""

    def api_base(self, settings: LLMSettings) -> str:
        """Return the root of its API."""
        return str(getattr(settings, f"{self.name}_api_base"))

    def usable(self, settings: LLMSettings) -> bool:
        """Return whether it has the key that it needs."""
        key = getattr(settings, f"{self.name}_api_key")
        return not self.needs_key or bool(key and key.get_secret_value())

    def local(self, settings: LLMSettings, model: str) -> bool:  # noqa: ARG002  # the protocol's signature
        """Return whether prompts for `model` stay on the hosts that count as local."""
        return is_local_url(self.api_base(settings), settings.local_hosts)

    def caps(self, settings: LLMSettings, model: str) -> ProviderCaps:  # noqa: ARG002  # as above
        """Return what `model` can do: tools and JSON, in a window of 8,192 tokens, as long as nobody knows better."""
        return ProviderCaps(
            supports_tools=True,
            supports_forced_tool_choice=True,
            supports_json=True,
            supports_json_schema=False,
            supports_vision=False,
            max_context_tokens=8_192,
        )

    def identity_options(self, settings: LLMSettings, model: str) -> dict[str, JsonValue]:  # noqa: ARG002  # as above
        """Return the options of its own that change what `model` answers."""
        return {}

    def call_options(self, settings: LLMSettings, model: str, request: LLMRequest) -> dict[str, Any]:
        """Return one call in the words of `litellm.acompletion`."""
        return openai_options(
            request,
            model=f"openai/{model}",
            api_base=self.api_base(settings),
            api_key=getattr(settings, f"{self.name}_api_key"),
            reasoning_effort=request.thinking if isinstance(request.thinking, str) else None,
        )

    def listing(self, settings: LLMSettings) -> Inquiry | None:
        """Return how it is asked which models it has; None if it has no `/models` that costs nothing."""
        return openai_listing(self.api_base(settings), getattr(settings, f"{self.name}_api_key"))

    def listed(self, answer: Any) -> tuple[ListedModel, ...]:
        """Return the models of such an answer.

        Raises:
            ValueError: It lists no models.
        """
        return openai_listed(answer)
