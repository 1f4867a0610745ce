"""What follows a failed send, rule by rule; the real error classes, no clock."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.llm import errors
from app.llm.candidates import Candidate, ProviderCaps
from app.llm.retry import (
    Again,
    NextCandidate,
    RetryPolicy,
    Stop,
    StopReason,
    Verdict,
    acceptable_next,
    attempt_timeout_s,
)
from app.llm.settings import LLMSettings, RetryPossiblyPaid
from app.llm.types import LLMProvider

NEVER, FALLBACK_ONLY, ALWAYS = RetryPossiblyPaid


def policy(**fields: Any) -> RetryPolicy:
    defaults: dict[str, Any] = {
        "max_attempts": 4,
        "attempts_per_candidate": 2,
        "retry_possibly_paid": FALLBACK_ONLY,
    }
    return RetryPolicy(**{**defaults, **fields})


def after(error: errors.LLMError, rules: RetryPolicy | None = None, **state: Any) -> Verdict:
    start: dict[str, Any] = {
        "sends_total": 1,
        "sends_here": 1,
        "left_s": 60.0,
        "has_next": True,
        "jitter": 0.5,
    }
    return (rules or policy()).decide(error, **{**start, **state})


def unavailable(**facts: Any) -> errors.LLMUnavailable:
    return errors.LLMUnavailable("down", **facts)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.LLMUnavailable, Again(delay_s=0.25)),
        (errors.LLMRateLimited, Again(delay_s=0.25)),
        (errors.LLMCapability, NextCandidate()),
        (errors.LLMContextExceeded, NextCandidate()),
        (errors.LLMBadResponse, NextCandidate()),  # possibly paid: not the same candidate
        (errors.LLMInvalidOutput, Again(delay_s=0.0)),  # paid, and another question
        (errors.LLMBadRequest, Stop(reason=StopReason.FINAL)),
        (errors.LLMAuth, Stop(reason=StopReason.FINAL)),
        (errors.LLMModelNotFound, Stop(reason=StopReason.FINAL)),
        (errors.LLMContentFiltered, Stop(reason=StopReason.FINAL)),
        (errors.LLMInternal, Stop(reason=StopReason.FINAL)),
        (errors.LLMUnknown, Stop(reason=StopReason.FINAL)),
        (errors.LLMLedgerBusy, Stop(reason=StopReason.FINAL)),
    ],
)
def test_the_class_of_an_error_decides_what_may_follow(error: type[errors.LLMError], expected: Verdict):
    assert after(error("it failed")) == expected


@pytest.mark.parametrize(
    ("risk", "first", "with_next", "alone"),
    [
        (NEVER, StopReason.POSSIBLY_PAID, StopReason.POSSIBLY_PAID, StopReason.POSSIBLY_PAID),
        (FALLBACK_ONLY, None, None, StopReason.POSSIBLY_PAID),
        (ALWAYS, None, None, StopReason.NO_CANDIDATE),
    ],
)
def test_a_send_that_may_have_been_paid_is_repeated_as_the_setting_allows(
    risk: RetryPossiblyPaid,
    first: StopReason | None,
    with_next: StopReason | None,
    alone: StopReason,
):
    rules, error = policy(retry_possibly_paid=risk), errors.LLMTimeout("late", possibly_paid=True)
    again = Again(delay_s=0.25) if risk is ALWAYS else NextCandidate()
    assert after(error, rules) == (Stop(reason=first) if first else again)
    assert after(error, rules, sends_here=2) == (Stop(reason=with_next) if with_next else NextCandidate())
    assert after(error, rules, sends_here=2, has_next=False) == Stop(reason=alone)


def test_a_second_question_is_no_repetition_unless_nothing_may_be_paid_twice():
    error = errors.LLMInvalidOutput("not valid")
    assert after(error, policy(attempts_per_candidate=1), sends_here=3) == Again(delay_s=0.0)
    assert after(error, left_s=0.0) == Stop(reason=StopReason.NO_TIME, retry_after_s=0.0)
    assert after(error, sends_total=4) == Stop(reason=StopReason.MAX_ATTEMPTS)
    assert after(error, policy(retry_possibly_paid=NEVER)) == Stop(reason=StopReason.POSSIBLY_PAID)
    error.retryable = False  # its tries are used up
    assert after(error) == NextCandidate()
    assert after(error, policy(retry_possibly_paid=NEVER)) == Stop(reason=StopReason.POSSIBLY_PAID)


def test_an_error_that_was_surely_not_paid_is_retried_under_every_setting():
    for risk in RetryPossiblyPaid:
        assert after(unavailable(), policy(retry_possibly_paid=risk)) == Again(delay_s=0.25)


def test_the_candidate_is_left_when_its_sends_are_used_up():
    assert after(unavailable(), sends_total=2, sends_here=2) == NextCandidate()
    assert after(unavailable(), sends_total=2, sends_here=2, has_next=False) == Stop(
        reason=StopReason.NO_CANDIDATE
    )


def test_the_call_ends_when_all_its_sends_are_used_up():
    assert after(unavailable(), sends_total=4, sends_here=1) == Stop(reason=StopReason.MAX_ATTEMPTS)
    assert after(errors.LLMCapability("no tools"), sends_total=4) == Stop(reason=StopReason.MAX_ATTEMPTS)
    assert after(errors.LLMBadRequest("wrong"), sends_total=4) == Stop(reason=StopReason.FINAL)


def test_garbage_is_asked_for_twice_at_most():
    rules = policy(attempts_per_candidate=9, max_attempts=9, retry_possibly_paid=ALWAYS)
    assert after(errors.LLMBadResponse("html"), rules, sends_here=1) == Again(delay_s=0.25)
    assert after(errors.LLMBadResponse("html"), rules, sends_here=2) == NextCandidate()
    assert isinstance(after(unavailable(), rules, sends_here=2), Again)


@pytest.mark.parametrize("code", ["auth", "model_not_found", "content_filtered"])
def test_an_error_named_in_the_settings_falls_back(code: str):
    error = next(cls for cls in errors.LLMProviderError.__subclasses__() if cls.code == code)("no")
    assert after(error, policy(fallback_on=(code,))) == NextCandidate()
    assert after(error, policy(fallback_on=(code,)), has_next=False) == Stop(reason=StopReason.NO_CANDIDATE)


def test_an_instance_may_overrule_its_class():
    out_of_memory = unavailable()
    out_of_memory.retryable = False  # type: ignore[misc]  # as the mapping does for one message of Ollama
    assert after(out_of_memory) == NextCandidate()
    out_of_memory.fallback = False  # type: ignore[misc]
    assert after(out_of_memory) == Stop(reason=StopReason.FINAL)


def test_retry_after_beats_the_schedule():
    assert after(errors.LLMRateLimited("slow down", retry_after_s=7.0), jitter=0.0) == Again(delay_s=7.0)
    assert after(errors.LLMRateLimited("slow down", retry_after_s=-3.0)) == Again(delay_s=0.0)


def test_a_wait_beyond_the_deadline_means_the_next_candidate_else_the_end():
    error = errors.LLMRateLimited("slow down", retry_after_s=60.0)
    assert after(error, left_s=60.0) == NextCandidate()
    assert after(error, left_s=60.0, has_next=False) == Stop(reason=StopReason.NO_TIME, retry_after_s=60.0)
    assert after(error, left_s=60.5, has_next=False) == Again(delay_s=60.0)
    assert after(unavailable(), left_s=0.2, has_next=False) == Stop(
        reason=StopReason.NO_TIME, retry_after_s=0.25
    )


def test_nothing_is_sent_after_the_deadline():
    assert after(unavailable(), left_s=0.0, jitter=0.0) == Stop(reason=StopReason.NO_TIME, retry_after_s=0.0)
    assert after(errors.LLMCapability("no tools"), left_s=-1.0) == Stop(reason=StopReason.NO_TIME)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_schedule_doubles_up_to_its_cap_and_jitter_only_shortens_it(sends_here: int, jitter: float):
    rules = policy()
    whole = min(8.0, 0.5 * 2.0 ** min(sends_here - 1, 100))
    assert rules.delay_s(unavailable(), sends_here=sends_here, jitter=jitter) == jitter * whole


def test_the_policy_is_read_from_the_settings():
    settings = LLMSettings.model_construct(
        max_attempts=7, attempts_per_candidate=3, retry_possibly_paid=NEVER, fallback_on=("auth",)
    )
    assert RetryPolicy.from_settings(settings) == policy(
        max_attempts=7, attempts_per_candidate=3, retry_possibly_paid=NEVER, fallback_on=("auth",)
    )


def with_window(tokens: int) -> Candidate:
    able = dict.fromkeys((name for name in ProviderCaps.model_fields if name.startswith("supports_")), True)
    caps = ProviderCaps(**able, max_context_tokens=tokens)
    return Candidate(provider=LLMProvider.OLLAMA, model=f"m{tokens}", caps=caps, local=True, identity="x")


def test_a_prompt_that_did_not_fit_goes_to_larger_windows_only():
    small, large = with_window(100), with_window(101)
    error = errors.LLMContextExceeded("too long")
    assert acceptable_next(error, small, large)
    assert not acceptable_next(error, large, small)
    assert not acceptable_next(error, small, small)
    assert acceptable_next(unavailable(), large, small)


@pytest.mark.parametrize(
    ("cap", "total", "left", "to_come", "expected"),
    [
        (60, 120, 120, 0, 60),  # the cap
        (60, 60, 60, 1, 48),  # a fifth is kept back for the next candidate
        (60, 60, 60, 2, 36),
        (60, 60, 10, 1, 1),  # never under a second
        (60, 60, 0.4, 1, 0.4),  # nor more than is left
        (0.5, 60, 60, 0, 0.5),  # a cap under a second is meant
        (60, 60, -1, 0, 0),
    ],
)
def test_one_send_leaves_time_for_the_candidates_after_it(
    cap: float, total: float, left: float, to_come: int, expected: float
):
    assert attempt_timeout_s(
        attempt_cap_s=cap, total_s=total, left_s=left, candidates_to_come=to_come
    ) == pytest.approx(expected)


@given(st.floats(0.1, 1e5), st.floats(0.1, 1e5), st.floats(0, 1), st.integers(0, 20))
def test_the_time_of_a_send_stays_within_cap_and_deadline(
    cap: float, total: float, part: float, to_come: int
):
    left = total * part
    timeout = attempt_timeout_s(attempt_cap_s=cap, total_s=total, left_s=left, candidates_to_come=to_come)
    assert min(1.0, cap, left) <= timeout <= min(cap, left)
