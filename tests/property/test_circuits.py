"""Random walks of one circuit beside a model: what counts is what began since it last opened or closed."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.clock import SystemClock
from app.llm.breaker import OPEN_S, THRESHOLD, Breaker, Permit
from app.llm.errors import LLMBadRequest, LLMError, LLMTimeout, LLMUnavailable
from tests.support.rounds import times

NAME = "ollama:first"
PATIENCE_S = 30.0
OUTCOMES: dict[str, tuple[LLMError | None, float]] = {
    "answer": (None, 60),
    "refusal": (LLMBadRequest("no"), 60),
    "down": (LLMUnavailable("down"), 60),
    "slow": (LLMTimeout("slow"), PATIENCE_S),
    "haste": (LLMTimeout("haste"), PATIENCE_S - 1),
}
ALIVE, DEAD = ("answer", "refusal"), ("down", "slow")
STEPS = st.one_of(
    st.just("begin"),
    st.sampled_from([1.0, OPEN_S / 2, OPEN_S]),
    st.tuples(st.integers(0, 9), st.sampled_from([*OUTCOMES, "cancelled"])),
)


class Clock(SystemClock):
    __slots__ = ("at_s",)

    def __init__(self) -> None:
        self.at_s = 0.0

    def monotonic_s(self) -> float:
        return self.at_s


@dataclass
class Model:
    """Remembers every send that is under way by when it began, and nothing of eras."""

    open_until_s: float | None = None
    failures: int = 0
    counted: list[Permit] = field(default_factory=list)
    """Sends under way that began since the last change; while the circuit is open, the probe."""

    def admits(self, now_s: float) -> bool:
        return self.open_until_s is None or (now_s >= self.open_until_s and not self.counted)

    def ended(self, permit: Permit, outcome: str, now_s: float) -> None:
        if permit not in self.counted:
            return
        self.counted.remove(permit)
        if outcome in DEAD:
            self.failures += 1
            if self.open_until_s is not None or self.failures == THRESHOLD:
                self._change(now_s + OPEN_S)
        elif outcome in ALIVE:
            self.failures = 0
            if self.open_until_s is not None:
                self._change(None)

    def _change(self, open_until_s: float | None) -> None:
        self.open_until_s, self.failures, self.counted = open_until_s, 0, []


@settings(max_examples=times(5_000, in_short=500), deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_a_circuit_opens_probes_and_closes_as_its_model_does(steps: list[object]):
    clock, model = Clock(), Model()
    breaker, under_way = Breaker(clock, patience_s=PATIENCE_S), list[Permit]()
    for step in steps:
        if step == "begin":
            permit = breaker.begin(NAME)
            assert (permit is not None) == model.admits(clock.at_s)
            if permit is not None:
                under_way.append(permit)
                model.counted.append(permit)
        elif isinstance(step, float):
            clock.at_s += step
        elif isinstance(step, tuple) and under_way:
            permit = under_way.pop(step[0] % len(under_way))
            if step[1] == "cancelled":
                breaker.withdraw(permit)
            else:
                error, had_s = OUTCOMES[step[1]]
                breaker.report(permit, error, had_s=had_s)
            model.ended(permit, step[1], clock.at_s)
        assert breaker.admits(NAME) == model.admits(clock.at_s)
        closed_in_s = 0.0 if model.open_until_s is None else max(0.0, model.open_until_s - clock.at_s)
        assert breaker.closed_in_s(NAME) == closed_in_s
