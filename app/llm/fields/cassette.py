"""The settings of record and replay: whether providers are asked, and the file that keeps what they said."""

from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import model_validator

from app.llm.fields import Fields


class LLMMode(StrEnum):
    """Who answers: providers, providers whose answers are recorded, or what was recorded."""

    LIVE = "live"
    RECORD = "record"
    REPLAY = "replay"


class CassetteFields(Fields):
    """How the calls of a test are recorded once and replayed ever after."""

    # -- record and replay
    mode: LLMMode = LLMMode.LIVE
    """Who answers: `live` (providers), `record` (providers, and what they say is kept in LLM_CASSETTE), `replay` (LLM_CASSETTE; nobody is asked)."""
    cassette: Path | None = None
    """File of recorded calls, one line of JSON each, for the modes `record` and `replay`."""

    @model_validator(mode="after")
    def _modes_have_their_file(self) -> Self:
        if self.mode is not LLMMode.LIVE and self.cassette is None:
            raise ValueError(f"LLM_MODE={self.mode}: needs LLM_CASSETTE, the file of recorded calls")
        return self
