"""Real providers, if there are any: what is found, what it would cost, and whether the person agrees."""

import aiohttp

from app.demo.screen import Screen
from app.llm import LLMError, LLMSettings, load_settings

LOOK_S = 1.5


async def ollama_models(settings: LLMSettings) -> tuple[str, ...] | None:
    """Return the models that a running Ollama has; None when none answers at the configured base."""
    try:
        timeout = aiohttp.ClientTimeout(total=LOOK_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{settings.ollama_api_base}/api/tags") as reply,
        ):
            body = await reply.json()
        return tuple(str(model["name"]) for model in body["models"])
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        return None


async def invitation() -> str | None:
    """Return the line to run next when a real provider is there, or what is wrong with the settings; else None."""
    try:
        settings = load_settings()
    except LLMError as error:
        return f"Your own settings cannot be used yet: {error.message}"
    found = [
        name
        for name, there in (
            (f"an Ollama at {settings.ollama_api_base}", await ollama_models(settings) is not None),
            ("a Gemini key", settings.gemini_api_key is not None),
        )
        if there
    ]
    return (
        f"You have {' and '.join(found)}: make demo LIVE=1 shows the same on the real thing."
        if found
        else None
    )


async def live_settings(screen: Screen) -> dict[str, object] | None:
    """Return the settings to run live with, after the checks and the person's consent; None with the reason said.

    Raises:
        LLMSettingsError: The environment's settings are wrong.
    """
    settings = load_settings()
    models, listed = await ollama_models(settings), []
    wanted = settings.ollama_model
    if models is None:
        screen.line(f"No Ollama answers at {settings.ollama_api_base}: start it with `ollama serve`.")
    elif wanted in models or f"{wanted}:latest" in models:
        listed.append("ollama")
    else:
        screen.line(
            f"Ollama runs, but {wanted} is not pulled: run `ollama pull {wanted}`, or set LLM_OLLAMA_MODEL."
        )
    if settings.gemini_api_key is None:
        screen.line("No Gemini key: set LLM_GEMINI_API_KEY to use it.")
    elif screen.ask(f"Calls to {settings.gemini_model} may cost money (about ten short ones). Use Gemini?"):
        listed.append("gemini")
    if not listed:
        screen.line("Nothing to run live on.")
        return None
    profile = ",".join(listed)
    return {f"profile_{name}": profile for name in ("fast", "balanced", "advanced")}
