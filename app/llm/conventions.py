"""The attributes of spans: the only file that spells them, and that names the version of the conventions they are from.

`gen_ai.*` are OpenTelemetry's conventions for generative AI, which are in development; the names below are the same in
the last version of the common repository that had them (1.41) and in the repository that they moved to. Source:
https://github.com/open-telemetry/semantic-conventions-genai. `signalbox.*` are our own.
"""

from collections.abc import Mapping
from types import MappingProxyType

VERSION = "1.42.0"
SCHEMA_URL = f"https://opentelemetry.io/schemas/gen-ai/{VERSION}"

OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
SYSTEM = "gen_ai.system"
"""As `PROVIDER_NAME` was called until 1.36; PydanticAI writes both."""
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
REQUEST_SEED = "gen_ai.request.seed"
REQUEST_STOP_SEQUENCES = "gen_ai.request.stop_sequences"
REQUEST_STREAM = "gen_ai.request.stream"
OUTPUT_TYPE = "gen_ai.output.type"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS = "gen_ai.usage.cache_creation.input_tokens"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
HTTP_STATUS = "http.response.status_code"
ERROR_TYPE = "error.type"

CHAT, JSON = "chat", "json"
"""Values of `OPERATION_NAME` and `OUTPUT_TYPE`."""

RUN_ID = "signalbox.run_id"
WORKSPACE = "signalbox.workspace_id"
STAGE = "signalbox.stage"
PROFILE = "signalbox.profile"
STATUS = "signalbox.status"
SERVED_FROM = "signalbox.served_from"
ANSWERED_BY = "signalbox.answered_by"
FAILED_ATTEMPTS = "signalbox.failed_attempts"
ORDINAL = "signalbox.attempt"
COST_USD = "signalbox.cost_usd"
POSSIBLY_PAID = "signalbox.possibly_paid"
OUTCOME = "signalbox.ledger.outcome"

CALL_SPAN = "signalbox.call"
CLAIM_SPAN = "signalbox.ledger.claim"
FINISH_SPAN = "signalbox.ledger.finish"

_WELL_KNOWN: Mapping[str, str] = MappingProxyType({"gemini": "gcp.gemini"})


def provider_name(provider: str) -> str:
    """Return what the conventions call a provider; one that they do not know keeps its name."""
    return _WELL_KNOWN.get(provider, provider)
