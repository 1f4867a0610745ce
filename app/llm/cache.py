"""The content cache's rules: whose stored answer may be served, and who waits for whom. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.llm.candidates import Candidate, RouteDecision
from app.llm.fingerprint import flight_slot
from app.llm.ports import StoredAnswer
from app.llm.settings import CacheMatch, LLMSettings
from app.llm.types import CacheMode, FinishReason, LLMRequest, LLMResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRules:
    """What the settings say about the cache."""

    enabled: bool
    match: CacheMatch

    @classmethod
    def from_settings(cls, settings: LLMSettings) -> "CacheRules":
        """Return the rules that the settings describe."""
        return cls(enabled=settings.cache_enabled, match=settings.cache_match)

    def reads(self, request: LLMRequest) -> bool:
        """Return whether a stored answer may be served to this request."""
        return self.enabled and request.cache is CacheMode.USE and not request.force_new_execution

    def servable_now(self, route: RouteDecision) -> tuple[str, ...]:
        """Return the identities whose answer may be served before anything is sent, in order of preference."""
        identities = tuple(candidate.identity for candidate in route.kept)
        return identities if self.match is CacheMatch.ANY else identities[:1]

    def choose(self, route: RouteDecision, found: Mapping[str, StoredAnswer]) -> StoredAnswer | None:
        """Return the answer to serve before anything is sent."""
        return next((found[name] for name in self.servable_now(route) if name in found), None)


def slot_for(workspace_id: str, prompt_sha256: str, first: Candidate) -> str:
    """Return the flight slot: one call at a time works on a fingerprint at the candidate it asks first."""
    return flight_slot(workspace_id, prompt_sha256, first.identity)


def may_be_hit(response: LLMResponse) -> bool:
    """Return whether an answer is complete, unfiltered and untruncated."""
    return response.finish_reason in {FinishReason.STOP, FinishReason.TOOL_CALLS}
