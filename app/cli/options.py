"""Options that several commands have, declared once: those that shape a request, and those that choose recorded runs."""

import inspect
from collections.abc import Callable, Container
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.cli.ages import seconds

if TYPE_CHECKING:
    from app.llm.persistence.reports import RunFilter

Profile = Literal["fast", "balanced", "advanced"]
"""The values of `LLMProfile`, spelled again because importing it would make `--help` slow."""
Cache = Literal["use", "refresh", "bypass"]
"""The values of `CacheMode`."""
Status = Literal["STARTED", "SUCCEEDED", "FAILED", "CANCELLED", "ABANDONED"]
"""The states of a run."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Which recorded runs the command line chooses; None is "not said"."""

    workspace: Annotated[str | None, typer.Option(metavar="NAME", help="Of this tenant.")] = None
    status: Annotated[Status | None, typer.Option(case_sensitive=False, help="In this state.")] = None
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="Of this step.")] = None
    provider: Annotated[str | None, typer.Option(metavar="NAME", help="Of this provider.")] = None
    model: Annotated[
        str | None, typer.Option(metavar="[PROVIDER:]MODEL", help="Of this model: ollama:llama3.2, llama3.2.")
    ] = None
    error: Annotated[str | None, typer.Option(metavar="CODE", help="With this error code: timeout.")] = None
    key: Annotated[str | None, typer.Option(metavar="KEY", help="With this idempotency key.")] = None
    pipeline_run: Annotated[str | None, typer.Option(metavar="ID", help="Of this workflow run.")] = None
    since: Annotated[
        str | None, typer.Option(metavar="AGE", help="Not older than 90s, 30m, 24h, 7d, 2w.")
    ] = None

    def filter(self) -> "RunFilter":
        """Return them as the ledger takes them.

        Raises:
            UsageFault: The age is none.
        """
        from app.llm.persistence.reports import RunFilter  # noqa: PLC0415  # --help is fast

        return RunFilter(
            workspace_id=self.workspace,
            status=self.status,
            stage=self.stage,
            provider=self.provider,
            model=self.model,
            error_code=self.error,
            idempotency_key=self.key,
            pipeline_run_id=self.pipeline_run,
            newer_than_s=seconds(self.since, "--since") if self.since is not None else None,
        )


def with_request_options(
    command: Callable[..., None], *, without: Container[str] = ()
) -> Callable[..., None]:
    """Return a command that takes the options of `RequestOptions` where `command` has its parameter `asked`."""
    return _with_options(command, RequestOptions, "asked", without)


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes the options of `RunOptions` where `command` has its parameter `chosen`."""
    return _with_options(command, RunOptions, "chosen", ())


def _with_options(
    command: Callable[..., None], kind: type[Any], where: str, without: Container[str]
) -> Callable[..., None]:
    shared = {each.name: each for each in fields(kind) if each.name not in without}

    @wraps(command)
    def wrapper(**given: Any) -> None:  # typer checked them
        said = kind(**{name: given.pop(name) for name in shared})
        command(**given, **{where: said})

    own = [each for each in inspect.signature(command).parameters.values() if each.name != where]
    parameters = own + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
        for name, each in shared.items()
    ]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapper
