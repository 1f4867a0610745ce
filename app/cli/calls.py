"""What `chat` and `explain` do once their options are read; loaded by them alone, because that takes time."""

import mimetypes

from pydantic import ValidationError

from app.bootstrap import build_llm_service
from app.cli.faults import UsageFault
from app.cli.options import RequestOptions
from app.cli.output import read_bytes
from app.llm.candidates import RouteDecision
from app.llm.messages import ImagePart, Message, ResponseFormat
from app.llm.providers import Catalog
from app.llm.router import LLMRouter
from app.llm.settings import LLMSettings, load_settings
from app.llm.types import CacheMode, LLMCallContext, LLMConstraints, LLMProfile, LLMRequest, LLMResponse

LOCAL_WORKSPACE = "local"
"""Workspace of calls from the command line, where neither an option nor a setting names one."""

_OPTIONS = {
    "idempotency_key": "--key",
    "timeout_s": "--timeout",
    "workspace_id": "--workspace",
    "data": "--image",
    "media_type": "--image",
}
"""Options that are not called like their field."""
_FORMS = {
    "model": "write PROVIDER:MODEL, for example ollama:llama3.2",
    "media_type": "a PNG, JPEG, WebP or GIF file is needed",
}
"""What to write, where pydantic's message would quote a pattern."""


async def answer(asked: RequestOptions, prompt: str) -> LLMResponse:
    """Return the answer to one prompt."""
    settings = load_settings()
    request, context = request_of(asked, prompt), context_of(asked, settings)
    async with build_llm_service(settings) as service:
        return await service.chat(request, context=context)


def route(
    asked: RequestOptions, prompt: str, *, form: ResponseFormat | None, image: str | None
) -> RouteDecision:
    """Return the route that a call would take; neither a provider nor the database is asked."""
    settings = load_settings()
    request = request_of(asked, prompt, form=form, image=image)
    return LLMRouter.from_settings(settings).route(
        request, caps=Catalog.from_settings(settings), stage=asked.stage
    )


def request_of(
    asked: RequestOptions,
    prompt: str,
    *,
    system: str | None = None,
    form: ResponseFormat | None = None,
    image: str | None = None,
) -> LLMRequest:
    """Return the request that the options describe; their system message beats `system`.

    Raises:
        UsageFault: A value is out of range, the prompt is blank, or the image cannot be used.
    """
    if not prompt.strip():
        raise UsageFault("there is nothing to ask: the prompt is empty")
    instruction = asked.system or system
    try:
        content = Message.user(prompt, *([_image(image)] if image else []))
        return LLMRequest(
            messages=(*([Message.system(instruction)] if instruction else []), content),
            profile=LLMProfile(asked.profile) if asked.profile else None,
            model=asked.model,
            temperature=asked.temperature,
            max_output_tokens=asked.max_output_tokens,
            response_format=form,
            constraints=LLMConstraints(local_only=asked.local_only or None),
            idempotency_key=asked.key,
            cache=CacheMode(asked.cache),
            timeout_s=asked.timeout,
        )
    except ValidationError as error:
        raise _usage(error) from None


def context_of(asked: RequestOptions, settings: LLMSettings) -> LLMCallContext:
    """Return whom the call belongs to.

    Raises:
        UsageFault: A name is blank, too long or not printable.
    """
    workspace = asked.workspace or settings.default_workspace or LOCAL_WORKSPACE
    try:
        return LLMCallContext(workspace_id=workspace, stage=asked.stage)
    except ValidationError as error:
        raise _usage(error) from None


def _image(name: str) -> ImagePart:
    media_type, _ = mimetypes.guess_type(name)
    return ImagePart.model_validate({"data": read_bytes(name), "media_type": media_type})


def _usage(error: ValidationError) -> UsageFault:
    fault = error.errors(include_url=False)[0]
    field = str(fault["loc"][0]) if fault["loc"] else ""
    option = _OPTIONS.get(field, f"--{field.replace('_', '-')}") if field else "the request"
    said = _FORMS.get(field) or fault["msg"].removeprefix("Value error, ")
    return UsageFault(f"{option}: {said}")
