"""Event names, fields and metric names: the only file that spells them, so that dashboards never chase a rename."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Protocol

from app.core.logging import is_shown, write
from app.llm.errors import (
    LLMBudgetExceeded,
    LLMCancelled,
    LLMContractError,
    LLMError,
    LLMInternal,
    LLMNoCandidate,
    LLMProviderError,
)
from app.llm.ports import NewRun
from app.llm.redaction import Redactor
from app.llm.types import Attempt, LLMProfile, LLMRequest, LLMResponse

CALLS = "llm_calls_total"
ATTEMPTS = "llm_attempts_total"
RETRIES = "llm_retries_total"
FALLBACKS = "llm_fallbacks_total"
SERVED = "llm_served_total"
TOKENS = "llm_tokens_total"
CALL_LATENCY_MS = "llm_call_latency_ms"
QUEUE_WAIT_MS = "llm_queue_wait_ms"
IN_FLIGHT = "llm_in_flight"
BUDGET_WARNINGS = "llm_budget_warnings_total"
BUDGET_REFUSALS = "llm_budget_refusals_total"

EVENT_READY = "llm_ready"
EVENT_LANE_UNFIT = "llm_lane_unfit"
EVENT_CALL = "llm_call"
EVENT_ATTEMPT_FAILED = "llm_attempt_failed"
EVENT_TAKEOVER = "llm_takeover"
EVENT_EFFECT = "llm_effect"
EVENT_LEASE_NOT_RENEWED = "llm_lease_not_renewed"
EVENT_FENCED = "llm_fenced"
EVENT_SPOOLED = "llm_spooled"
EVENT_SPOOL_DRAINED = "llm_spool_drained"
EVENT_SPOOL_REFUSED = "llm_spool_refused"
EVENT_SPOOL_ELSEWHERE = "llm_spool_of_another_host"
EVENT_UNPLACED = "llm_answer_unplaced"
EVENT_ANSWER_LOST = "llm_answer_not_recorded"
EVENT_SPOOL_UNWRITABLE = "llm_spool_unwritable"
EVENT_LEARNED = "llm_learned"
EVENT_MODEL_MISSING = "llm_model_missing"
EVENT_NOT_DESCRIBED = "llm_models_not_described"
EVENT_TOLD_TO_WAIT = "llm_told_to_wait"
EVENT_BACKGROUND_FAULT = "llm_background_fault"
EVENT_BUDGET_SOFT = "llm_budget_soft_limit"
EVENT_BUDGET_EXCEEDED = "llm_budget_exceeded"

_OWN_WORDS = frozenset({"llm_run_id", "status", "served_from", "profile", "provider", "error_code"})
"""Fields that this package spells itself; all other texts are redacted."""

NAMES_REMEMBERED, NAME_CHARS = 1024, 64
"""Workspaces, stages and models come again and again: what redaction makes of such short texts is remembered."""

_LEVELS: Mapping[str, int] = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Metrics(Protocol):
    """Counters, histograms and gauges behind a small port; labels are short and bounded."""

    def add(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Add to a counter, or to a gauge (negative values)."""
        ...

    def observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Record one value of a distribution."""
        ...


class Telemetry:
    """What service, client and ledger call: one helper an occasion."""

    def __init__(
        self,
        *,
        metrics: Metrics | None = None,
        redactor: Redactor | None = None,
        log_content: bool = False,
    ) -> None:
        self._metrics = metrics
        self.redact: Callable[[str], str] = redactor or Redactor()
        self._redact_name = lru_cache(NAMES_REMEMBERED)(self.redact)
        self._log_content = log_content
        self._budgets_told: set[tuple[str, str, str]] = set()
        """Workspaces, periods and measures whose first refusal was told."""

    def event(self, name: str, *, level: str = "info", **fields: object) -> None:
        """Write one event, if the host wants its level; strings are redacted, None is left out."""
        if is_shown(_LEVELS[level]):
            self._tell(name, _LEVELS[level], fields)

    def _tell(self, name: str, level: int, fields: Mapping[str, object]) -> None:
        told: dict[str, object] = {"event": name}
        for field, value in fields.items():
            if isinstance(value, str) and field not in _OWN_WORDS:
                told[field] = self._clean(value)
            elif value is not None:
                told[field] = value
        write(level, told)

    def _clean(self, text: str) -> str:
        return self._redact_name(text) if len(text) <= NAME_CHARS else self.redact(text)

    def lane_unfit(self, reason: str) -> None:
        """The installed LiteLLM has no dialect lane; calls go through `litellm.acompletion`."""
        self.event(EVENT_LANE_UNFIT, level="warning", wanted="dialect", lane="acompletion", reason=reason)

    def call_started(self) -> None:
        """A call came in."""
        if self._metrics is not None:
            self._metrics.add(IN_FLIGHT, 1, {})

    def call_ended(
        self,
        outcome: LLMResponse | BaseException,
        *,
        request: LLMRequest,
        profile: LLMProfile,
        latency_ms: float,
        run_id: str | None,
        workspace_id: str | None,
        stage: str | None,
    ) -> None:
        """A call went out: with an answer, refused, failed, or cancelled."""
        facts = _facts(outcome)
        labels = {**facts, "profile": profile.value}
        if self._metrics is not None:
            _count_call(self._metrics, labels, latency_ms)
        level = logging.WARNING if facts["status"] == "FAILED" else logging.INFO
        if is_shown(level):
            whose = {"llm_run_id": run_id, "workspace_id": workspace_id, "stage": stage}
            said = {"latency_ms": round(latency_ms, 2), **whose, **labels}
            if self._log_content:
                said["prompt"] = request.messages[-1].text
                said["answer"] = outcome.text if isinstance(outcome, LLMResponse) else ""
            self._tell(EVENT_CALL, level, said)

    def waited(self, waited_ms: float, *, provider: str) -> None:
        """A send got its slot."""
        if self._metrics is not None:
            self._metrics.observe(QUEUE_WAIT_MS, waited_ms, {"provider": provider})

    def attempt_ended(self, attempt: Attempt, run: NewRun) -> None:
        """One send ended."""
        labels = {"provider": attempt.provider.value, "model": attempt.model}
        if attempt.error_code:
            labels["error_code"] = attempt.error_code
        if self._metrics is not None:
            _count_attempt(self._metrics, attempt, labels)
        if attempt.error_code:
            self.event(
                EVENT_ATTEMPT_FAILED,
                level="warning",
                llm_run_id=run.run_id,
                workspace_id=run.workspace_id,
                stage=run.stage,
                profile=str(run.profile),
                ordinal=attempt.ordinal,
                status=attempt.status,
                http_status=attempt.http_status,
                latency_ms=round(attempt.latency_ms, 2),
                **labels,
            )

    def retried(self, *, provider: str, model: str) -> None:
        """The same candidate is asked again."""
        if self._metrics is not None:
            self._metrics.add(RETRIES, 1, {"provider": provider, "model": model})

    def told_to_wait(self, for_s: float, *, provider: str, model: str) -> None:
        """A provider asked to be left alone: nobody asks this candidate for so long."""
        self.event(EVENT_TOLD_TO_WAIT, provider=provider, model=model, for_s=round(for_s, 3))

    def fell_back(self, *, provider: str, model: str) -> None:
        """Another candidate is asked; the labels name the one that failed."""
        if self._metrics is not None:
            self._metrics.add(FALLBACKS, 1, {"provider": provider, "model": model})

    def budget_soft(self, *, per: str, measure: str, **facts: object) -> None:
        """A budget is used up as far as its soft limit; told once in a period."""
        if self._metrics is not None:
            self._metrics.add(BUDGET_WARNINGS, 1, {"per": per, "measure": measure})
        self.event(EVENT_BUDGET_SOFT, level="warning", per=per, measure=measure, **facts)

    def budget_exceeded(self, error: LLMBudgetExceeded) -> None:
        """A send did not fit under a budget; of each period the first is an event."""
        facts = error.facts
        per, measure = str(facts["per"]), str(facts["measure"])
        if self._metrics is not None:
            self._metrics.add(BUDGET_REFUSALS, 1, {"per": per, "measure": measure})
        whose = (str(facts["workspace_id"]), str(facts["period"]), measure)
        if whose in self._budgets_told:
            return
        if len(self._budgets_told) >= NAMES_REMEMBERED:
            self._budgets_told.clear()
        self._budgets_told.add(whose)
        self.event(
            EVENT_BUDGET_EXCEEDED,
            level="warning",
            workspace_id=whose[0],
            per=per,
            period=whose[1],
            measure=measure,
            error_message=error.message,
        )


def _count_call(metrics: Metrics, facts: Mapping[str, str], latency_ms: float) -> None:
    labels = {name: facts[name] for name in ("provider", "model", "profile") if name in facts}
    metrics.add(IN_FLIGHT, -1, {})
    metrics.add(CALLS, 1, {**labels, "status": facts["status"]})
    if "served_from" in facts:
        metrics.add(SERVED, 1, {"from": facts["served_from"]})
    metrics.observe(CALL_LATENCY_MS, latency_ms, labels)


def _count_attempt(metrics: Metrics, attempt: Attempt, labels: Mapping[str, str]) -> None:
    metrics.add(ATTEMPTS, 1, {**labels, "status": attempt.status})
    usage = attempt.usage
    for kind, count in (("input", usage.input_tokens), ("output", usage.output_tokens)):
        if count:
            tokens = {"provider": attempt.provider.value, "model": attempt.model, "kind": kind}
            metrics.add(TOKENS, count, tokens)


def _facts(outcome: LLMResponse | BaseException) -> dict[str, str]:
    if isinstance(outcome, LLMResponse):
        return {
            "status": "SUCCEEDED",
            "llm_run_id": outcome.run_id,
            "provider": outcome.provider.value,
            "model": outcome.model,
            "served_from": outcome.served_from.value,
        }
    if isinstance(outcome, asyncio.CancelledError):
        return {"status": "CANCELLED", "error_code": LLMCancelled.code}
    code = outcome.code if isinstance(outcome, LLMError) else LLMInternal.code
    refused = isinstance(outcome, LLMContractError) and not isinstance(outcome, LLMNoCandidate)
    named = outcome.facts if isinstance(outcome, LLMProviderError) else {}
    return {
        "status": "REFUSED" if refused else "FAILED",
        "error_code": code,
        **{name: str(named[name]) for name in ("provider", "model") if name in named},
    }
