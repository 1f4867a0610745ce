"""What a lane is: a way of sending one attempt, of which each provider has one."""

from collections.abc import Mapping
from typing import Any, Protocol

from app.llm.candidates import Candidate
from app.llm.wire.answers import Answer
from app.llm.wire.exchange import Exchange
from app.llm.wire.outlet import Outlet


class Lane(Protocol):
    """Sends one request and reads what comes back; never retries."""

    async def send(
        self, candidate: Candidate, options: Mapping[str, Any], exchange: Exchange
    ) -> Answer | None:
        """Return what the candidate said, None if nothing; all that is seen on the way stands in `exchange`.

        Args:
            candidate: Whom to ask.
            options: The `call_options` of its provider.
            exchange: The record of this attempt.

        Raises:
            Exception: There is no answer; `map_error` says what it means.
        """
        ...

    async def stream(
        self, candidate: Candidate, options: Mapping[str, Any], exchange: Exchange, outlet: Outlet
    ) -> None:
        """Put what the candidate says into `outlet` as it arrives, which has the answer in the end; as `send`."""
        ...
