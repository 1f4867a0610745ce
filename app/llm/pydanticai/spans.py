"""Which candidate answered, on the span of the request, because its own attributes name only who was asked."""

from opentelemetry.trace import Span, get_current_span
from pydantic_ai.messages import ModelResponse

from app.llm import conventions
from app.llm.tracing import is_request


def request_span() -> Span | None:
    """Return the current span if it is that of a model's request; a span of the caller's own is left alone."""
    span = get_current_span()
    return span if is_request(span) else None


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
            conventions.PROVIDER_NAME: conventions.provider_name(response.provider_name or ""),
            conventions.SYSTEM: response.provider_name or "",
            conventions.RUN_ID: provenance["llm_run_id"],
            conventions.SERVED_FROM: provenance["served_from"],
            conventions.FAILED_ATTEMPTS: len(response.failed_attempts or ()),
        }
    )
