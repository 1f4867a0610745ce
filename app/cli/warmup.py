"""`signalbox warmup`: what the first call would wait for is done before it."""

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.faults import NotFound, UsageFault
from app.cli.options import AsJson, Profile
from app.cli.output import emit, emit_json, note, status_line

if TYPE_CHECKING:
    from app.llm.settings import LLMSettings


def warmup(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A model of Ollama's. Default: the first one of the profile."),
    ] = None,
    *,
    profile: Annotated[
        Profile | None, typer.Option(help="Whose model. Default: LLM_DEFAULT_PROFILE.")
    ] = None,
    keep_alive: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="How long it stays: 30m, -1 for ever. Default: LLM_OLLAMA_KEEP_ALIVE."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For the model.")] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Load LiteLLM, and have Ollama load the local model; say how long each took.

    The model stays in Ollama's memory for the next calls, whoever makes them, with the window that they ask for.
    LiteLLM is loaded by each process anew: here it shows that it can be, and the system keeps its files at hand.

    Example: signalbox warmup --keep-alive 1h
    """
    if not timeout > 0:  # NaN neither
        raise UsageFault("--timeout: more than 0 seconds")
    from app.llm.settings import load_settings  # noqa: PLC0415  # --help is fast

    settings = load_settings()
    name = model.removeprefix("ollama:") if model else _first_local(settings, profile)
    with status_line("loading LiteLLM"):
        library, library_s = _library(settings)
    if not as_json:
        emit(f"LiteLLM {library['version']} loaded in {library_s:.1f} s, lane {library['lane']}")
    if library["unfit"]:
        note(f"warning: this LiteLLM does not fit the lane `dialect`: {library['unfit']}")
    with status_line(f"loading {name}"):
        model_s = _loaded(settings, name, keep_alive, timeout)
    kept = keep_alive or settings.ollama_keep_alive
    num_ctx = settings.num_ctx_of("ollama", name)
    if as_json:
        emit_json(
            {
                "litellm": {**library, "took_s": round(library_s, 3)},
                "model": {"name": name, "num_ctx": num_ctx, "keep_alive": kept, "took_s": round(model_s, 3)},
            }
        )
    else:
        stays = f"stays for {kept}" if kept else "stays as long as Ollama's default says"
        emit(f"ollama:{name} loaded in {model_s:.1f} s, window {num_ctx:,} tokens, {stays}")


def _first_local(settings: "LLMSettings", profile: str | None) -> str:
    from app.llm.providers import Catalog  # noqa: PLC0415  # --help is fast
    from app.llm.types import LLMProfile, LLMProvider  # noqa: PLC0415

    wanted = LLMProfile(profile) if profile else settings.default_profile
    for candidate in Catalog.from_settings(settings).listed(wanted):
        if candidate.provider is LLMProvider.OLLAMA and candidate.enabled and candidate.local:
            return candidate.model
    raise NotFound(f"profile {wanted} lists no local model: name one, as in `signalbox warmup llama3.2`")


def _library(settings: "LLMSettings") -> tuple[dict[str, Any], float]:
    from app.diagnosis.library import loaded  # noqa: PLC0415  # --help is fast

    begun_s = perf_counter()
    library = loaded(settings)
    return {
        "version": library.version,
        "lane": library.lane,
        "unfit": library.unfit,
    }, perf_counter() - begun_s


def _loaded(settings: "LLMSettings", model: str, keep_alive: str | None, timeout_s: float) -> float:
    from app.llm.wire.pulling import load  # noqa: PLC0415  # --help is fast

    begun_s = perf_counter()
    asyncio.run(load(settings, model, keep_alive=keep_alive, timeout_s=timeout_s))
    return perf_counter() - begun_s
