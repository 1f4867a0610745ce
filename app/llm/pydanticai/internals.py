"""The private names of PydanticAI that we need, so that a release that moves them fails here, with a sentence."""

try:
    from pydantic_ai._run_context import get_current_run_context
    from pydantic_ai._utils import strip_markdown_fences
    from pydantic_ai.models import _sendable_request_parts as sendable_request_parts
    from pydantic_ai.models._tool_choice import resolve_tool_choice
except ImportError as error:  # pragma: no cover  # only another release of PydanticAI gets here
    raise ImportError(
        f"this pydantic-ai-slim is not one that the adapter knows ({error}); install the release in uv.lock"
    ) from error

__all__ = [
    "get_current_run_context",
    "resolve_tool_choice",
    "sendable_request_parts",
    "strip_markdown_fences",
]
