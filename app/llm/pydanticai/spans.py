"""Which candidate answered, on the span of the request, because its own attributes name only who was asked."""

from opentelemetry.trace import Span, get_current_span
from pydantic_ai.messages import ModelResponse

_REQUEST_MODEL = "gen_ai.request.model"
"""Set on the spans that PydanticAI opens around requests, and only there.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/."""


def request_span() -> Span | None:
    """Return the current span if it is that of a model's request; a span of the caller's own is left alone."""
    span = get_current_span()
    return span if span.is_recording() and _REQUEST_MODEL in getattr(span, "attributes", {}) else None


def name_answer(span: Span | None, response: ModelResponse) -> None:
    """Write the provider and the provenance of `response` on `span`.

    `gen_ai.request.model` stays as it was asked for, since a FallbackModel knows its span by it. PydanticAI itself
    writes `gen_ai.response.model`, tokens and cost.
    """
    if span is None:
        return
    provenance = response.metadata or {}
    span.set_attributes(
        {
            "gen_ai.provider.name": response.provider_name or "",
            "gen_ai.system": response.provider_name or "",
            "signalbox.run_id": provenance["llm_run_id"],
            "signalbox.served_from": provenance["served_from"],
            "signalbox.failed_attempts": len(response.failed_attempts or ()),
        }
    )
