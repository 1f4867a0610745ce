"""Which cassette a test holds: services that are built meanwhile use it, whatever their own settings say of one.

A test may build several services, one after another or from settings that read no variable. They share one tape, so the
second goes on where the first one was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.llm.settings import LLMMode, LLMSettings

if TYPE_CHECKING:
    from app.llm.cassettes.tapes import Playing, Recording


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A cassette in use: one of the two is there."""

    path: Path
    playing: "Playing | None" = None
    recording: "Recording | None" = None

    @property
    def mode(self) -> LLMMode:
        """What is done with it."""
        return LLMMode.REPLAY if self.playing is not None else LLMMode.RECORD


_held: list[Held] = []
"""The innermost last; of this process, as sockets are."""


@contextmanager
def cassette(path: Path, mode: LLMMode) -> Iterator[None]:
    """Let services that are built within this block record into a file, or be served from it; `LIVE` holds nothing.

    Raises:
        LLMSettingsError: The file cannot be read.
    """
    if mode is LLMMode.LIVE:
        yield
        return
    held = _opened(path, mode)
    _held.append(held)
    try:
        yield
    finally:
        _held.remove(held)


def in_force(settings: LLMSettings) -> LLMSettings:
    """Return the settings with the mode and the cassette that are held, if any are."""
    if not _held:
        return settings
    return settings.model_copy(update={"mode": _held[-1].mode, "cassette": _held[-1].path})


def playing(settings: LLMSettings) -> "Playing":
    """Return the tape to play: the held one, else the beginning of LLM_CASSETTE.

    Raises:
        LLMSettingsError: The file cannot be read.
    """
    held = _of(settings)
    assert held.playing is not None  # noqa: S101  # by its mode
    return held.playing


def recording(settings: LLMSettings) -> "Recording":
    """Return the tape to record on: the held one, else a new one for LLM_CASSETTE.

    Raises:
        LLMSettingsError: The file has no folder.
    """
    held = _of(settings)
    assert held.recording is not None  # noqa: S101  # by its mode
    return held.recording


def _of(settings: LLMSettings) -> Held:
    if _held:
        return _held[-1]
    assert settings.cassette is not None  # noqa: S101  # the settings were checked
    return _opened(settings.cassette, settings.mode)


def _opened(path: Path, mode: LLMMode) -> Held:
    from app.llm.cassettes.tapes import Playing, Recording  # noqa: PLC0415  # who asks providers needs neither

    if mode is LLMMode.REPLAY:
        return Held(path=path, playing=Playing(path))
    return Held(path=path, recording=Recording(path))
