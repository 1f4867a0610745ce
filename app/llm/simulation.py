"""What would have become of recorded calls under other settings: routed once more, and nobody is called. Pure."""

import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Self

from app.llm.candidates import ProviderCaps, RouteDecision
from app.llm.errors import LLMContractError
from app.llm.pricing import price_for
from app.llm.providers import Catalog
from app.llm.router import LLMRouter
from app.llm.settings import LLMSettings
from app.llm.types import LLMRequest, TokenUsage

_ABLE = {
    **{name: True for name in ProviderCaps.model_fields if name.startswith("supports_")},
    "max_context_tokens": sys.maxsize,
}
"""Of a candidate that has shown what it can do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One call that a provider answered."""

    run_id: str
    stage: str | None
    served_by: str
    """`provider:model`."""
    kept: tuple[str, ...]
    """Who would have been asked, in order, as its row says."""
    request: LLMRequest | None
    """None where it is not stored, or cannot be read."""
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    latency_ms: float | None

    @property
    def tokens(self) -> int | None:
        """Input and output; None while either is unknown."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        return self.input_tokens + self.output_tokens


@dataclass(slots=True)
class Share:
    """What one candidate, or all of them, do in one of both worlds. What is unknown is counted apart, never as zero."""

    runs: int = 0
    tokens: int = 0
    tokens_unknown: int = 0
    cost_usd: float = 0.0
    cost_unknown: int = 0

    def add(self, tokens: int | None, cost_usd: float | None) -> None:
        """Count one run."""
        self.runs += 1
        self.tokens += tokens or 0
        self.tokens_unknown += tokens is None
        self.cost_usd += cost_usd or 0.0
        self.cost_unknown += cost_usd is None

    def include(self, other: "Share") -> None:
        """Count the runs of another one."""
        self.runs += other.runs
        self.tokens += other.tokens
        self.tokens_unknown += other.tokens_unknown
        self.cost_usd += other.cost_usd
        self.cost_unknown += other.cost_unknown


@dataclass(slots=True, kw_only=True)
class Moves:
    """The outcome of a simulation."""

    runs: int = 0
    unread: int = 0
    """Calls that could not be routed again, for their requests are not there; not among `runs`."""
    moved: Counter[tuple[str, str]] = field(default_factory=Counter)
    """From whom to whom, and how often."""
    homeless: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of whom, and why nobody would have been left, and how often."""
    before: dict[str, Share] = field(default_factory=dict)
    after: dict[str, Share] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    """Median of what is recorded, by candidate; those without records are absent."""

    def expected_ms(self, shares: dict[str, Share]) -> tuple[float | None, int]:
        """Return the mean of the medians over runs, and the runs of candidates that have none."""
        known = {name: share.runs for name, share in shares.items() if name in self.latency_ms}
        unknown = sum(share.runs for name, share in shares.items() if name not in known)
        each = [self.latency_ms[name] for name, runs in known.items() for _ in range(runs)]
        return (fmean(each) if each else None), unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One set of settings, as far as it decides where calls go."""

    router: LLMRouter
    catalog: Catalog
    _proven: dict[str, Catalog] = field(default_factory=dict, init=False, compare=False, repr=False)
    """Catalogs in which one candidate, by its name, can do everything."""

    @classmethod
    def of(cls, settings: LLMSettings) -> Self:
        """Return the world of these settings; what was learned at run time is not in it."""
        return cls(router=LLMRouter.from_settings(settings), catalog=Catalog.from_settings(settings))

    def route(self, call: Recorded, request: LLMRequest, *, able: bool = False) -> RouteDecision:
        """Return who would be asked, in order; `able`: whoever answered then can do what was asked.

        Raises:
            LLMContractError: The request is none under these settings.
        """
        caps = self._with_proof(call.served_by) if able else self.catalog
        return self.router.route(request, caps=caps, stage=call.stage)

    def _with_proof(self, name: str) -> Catalog:
        found = self._proven.get(name)
        if found is None:
            caps = self.catalog.pinned(name).caps.model_copy(update=_ABLE)
            found = self._proven[name] = self.catalog.with_caps(name, caps)
        return found


class Simulation:
    """Takes recorded calls one by one, and says in the end where they would have gone under other settings.

    Whoever was passed over, be it that it failed, was left alone, or turned out to lack something, is passed over
    again: those that stand before the one that answered, in the recorded route or under the present settings. And
    whoever answered what the present settings do not know it for, as its provider had said at run time, is able to under
    settings that say the same of it. So the settings in force move nothing.
    """

    def __init__(self, *, now: World, then: World) -> None:
        """Take the settings in force, and the other ones."""
        self._now = now
        self._then = then
        self._moves = Moves()
        self._latencies: dict[str, array[float]] = defaultdict(lambda: array("d"))
        self._paid: dict[str, Share] = defaultdict(Share)
        self._arrived: dict[str, Share] = defaultdict(Share)

    def add(self, call: Recorded) -> None:
        """Route one call again."""
        if call.request is None:
            self._moves.unread += 1
            return
        self._note(call)
        able = self._turned_out_able(call, call.request)
        try:
            decision = self._then.route(call, call.request, able=able)
        except LLMContractError as error:
            self._moves.homeless[call.served_by, error.code] += 1
            return
        passed = self._passed_over(call, call.request, able=able)
        found = next((each for each in decision.kept if each.name not in passed), None)
        if found is None:
            why = "only candidates that did not answer then" if decision.kept else "no candidate"
            self._moves.homeless[call.served_by, why] += 1
        elif found.name == call.served_by:
            self._moves.after.setdefault(found.name, Share()).add(call.tokens, call.cost_usd)
        else:
            self._moves.moved[call.served_by, found.name] += 1
            usage = TokenUsage(input_tokens=call.input_tokens, output_tokens=call.output_tokens)
            cost_usd = price_for(found).cost_usd(usage, with_sound=decision.needs.audio)
            self._arrived[found.name].add(call.tokens, None if cost_usd is None else float(cost_usd))

    def outcome(self) -> Moves:
        """Return what came of the calls so far; call it once."""
        moves = self._moves
        moves.latency_ms.update({name: median(each) for name, each in self._latencies.items()})
        for name, share in self._arrived.items():
            whole = moves.after.setdefault(name, Share())
            whole.include(self._priced(name, share))
        return moves

    def _note(self, call: Recorded) -> None:
        self._moves.runs += 1
        self._moves.before.setdefault(call.served_by, Share()).add(call.tokens, call.cost_usd)
        if call.latency_ms is not None:
            self._latencies[call.served_by].append(call.latency_ms)
        if call.cost_usd is not None and call.tokens:
            self._paid[call.served_by].add(call.tokens, call.cost_usd)

    def _passed_over(self, call: Recorded, request: LLMRequest, *, able: bool) -> set[str]:
        ahead: set[str] = set()
        for kept in (call.kept, self._kept_now(call, request, able=able)):
            if call.served_by in kept:
                ahead |= set(kept[: kept.index(call.served_by)])
        return ahead

    def _kept_now(self, call: Recorded, request: LLMRequest, *, able: bool = False) -> tuple[str, ...]:
        """Return whom the present settings would ask; nobody where the request is none under them any more."""
        try:
            return tuple(each.name for each in self._now.route(call, request, able=able).kept)
        except LLMContractError:
            return ()

    def _turned_out_able(self, call: Recorded, request: LLMRequest) -> bool:
        """Return whether more was known at run time of who answered than settings say that agree about it."""
        name = call.served_by
        if name in self._kept_now(call, request):
            return False
        try:
            now, then = (world.catalog.pinned(name) for world in (self._now, self._then))
        except LLMContractError:  # its provider is not there any more
            return False
        return now.caps == then.caps

    def _priced(self, name: str, share: Share) -> Share:
        """Return what arrives at a candidate with its cost: by its price, else by what it took for a token before."""
        paid = self._paid.get(name)
        if paid is None or share.cost_unknown < share.runs:
            return share
        cost_usd = paid.cost_usd / paid.tokens * share.tokens
        return replace(share, cost_usd=cost_usd, cost_unknown=share.tokens_unknown)


def total(shares: Iterable[Share]) -> Share:
    """Return what all candidates do together."""
    whole = Share()
    for share in shares:
        whole.include(share)
    return whole
