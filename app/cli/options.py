"""The options that shape a request, declared once, so that `explain` takes exactly what `chat` and `extract` take."""

import inspect
from collections.abc import Callable, Container
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any, Literal

import typer

Profile = Literal["fast", "balanced", "advanced"]
"""The values of `LLMProfile`, spelled again because importing it would make `--help` slow."""
Cache = Literal["use", "refresh", "bypass"]
"""The values of `CacheMode`."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """What the command line says about a call; None is "not said"."""

    profile: Annotated[Profile | None, typer.Option(help="Intent; the settings list its candidates.")] = None
    model: Annotated[str | None, typer.Option(metavar="PROVIDER:MODEL", help="Ask this candidate only.")] = (
        None
    )
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Idempotency key: a call that has its answer is replayed."),
    ] = None
    workspace: Annotated[
        str | None, typer.Option(metavar="NAME", help="Tenant. Default: LLM_DEFAULT_WORKSPACE, else `local`.")
    ] = None
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="Step of a workflow, for the ledger.")] = (
        None
    )
    local_only: Annotated[bool, typer.Option("--local-only", help="Keep the prompt on local hosts.")] = False
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="For a whole call. Default: LLM_DEFAULT_TIMEOUT_S."),
    ] = None
    cache: Annotated[Cache, typer.Option(help="Content cache: read and feed it, only feed it, neither.")] = (
        "use"
    )
    max_output_tokens: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Longest answer allowed.")
    ] = None
    temperature: Annotated[float | None, typer.Option(metavar="0..2", help="Sampling temperature.")] = None


def with_request_options(
    command: Callable[..., None], *, without: Container[str] = ()
) -> Callable[..., None]:
    """Return a command that takes the options of `RequestOptions` where `command` has its parameter `asked`."""
    shared = {each.name: each for each in fields(RequestOptions) if each.name not in without}

    @wraps(command)
    def wrapper(**given: Any) -> None:  # typer checked them
        asked = RequestOptions(**{name: given.pop(name) for name in shared})
        command(**given, asked=asked)

    own = [each for each in inspect.signature(command).parameters.values() if each.name != "asked"]
    parameters = own + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
        for name, each in shared.items()
    ]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapper
