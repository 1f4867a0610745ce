"""Which LiteLLM is installed, and whether it still writes what our lane needs of it: found out by loading it."""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from app.diagnosis.findings import Finding, Tell, aside
from app.llm.settings import LiteLLMLane, LLMSettings
from app.llm.wire.loading import load_litellm

SUBJECTS = ("LiteLLM", "lane")
LOAD_S = 120.0
"""Seconds that loading it may take; 3 are usual."""
_NAME = "litellm"
_PINS = re.compile(r"(==|!=)\s*([0-9][^,;\s]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """LiteLLM as it is loaded."""

    version: str
    lane: LiteLLMLane
    """The lane of Ollama and Gemini that calls take."""
    unfit: str | None
    """Why they do not take `dialect`, where it is wanted."""


def loaded(settings: LLMSettings) -> Library:
    """Return LiteLLM, loaded as the first call would load it; takes seconds, in a thread."""
    library = load_litellm()
    from app.llm.wire.lanes import Lanes  # noqa: PLC0415  # loads aiohttp and httpx, with LiteLLM

    reasons: list[str] = []
    Lanes.opened(settings, library, reasons.append)  # no connection is made
    return Library(
        version=version(_NAME),
        lane=LiteLLMLane.ACOMPLETION if reasons else settings.litellm_lane,
        unfit=reasons[0] if reasons else None,
    )


async def look(tell: Tell, settings: LLMSettings) -> None:
    """Tell of LiteLLM and the lane."""
    tell(_installed())
    library = await aside(lambda: loaded(settings))
    if library.unfit is not None:
        said = (
            f"this LiteLLM does not fit the lane `dialect` ({library.unfit}): calls go through `acompletion`"
        )
        tell(Finding.warning("lane", said, f"{_install()}; `acompletion` costs several times the CPU"))
    else:
        tell(Finding.ok("lane", f"{library.lane}, to Ollama and Gemini"))


def remedy() -> str:
    """Return what to do when it cannot be loaded."""
    return _install()


def _installed() -> Finding:
    try:
        installed = version(_NAME)
    except PackageNotFoundError:
        return Finding.fault("LiteLLM", "it is not installed", _install())
    pins = _pins()
    if ("!=", installed) in pins:
        return Finding.fault("LiteLLM", f"{installed} is known to be harmful or broken", _install())
    if (wanted := dict(pins).get("==")) not in {None, installed}:
        return Finding.warning("LiteLLM", f"{installed}; tested is {wanted}", _install())
    return Finding.ok("LiteLLM", installed)


def _install() -> str:
    wanted = dict(_pins()).get("==")
    return f"pip install {_NAME}{'==' + wanted if wanted else ''}"


def _pins() -> list[tuple[str, str]]:
    """Return what this package says of LiteLLM's versions."""
    lines = [line for line in requires("signalbox") or () if re.match(rf"{_NAME}\b", line)]
    return [(pin[1], pin[2]) for line in lines for pin in _PINS.finditer(line)]
