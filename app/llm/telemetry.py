"""What is told of calls to logs, metrics and traces: one helper an occasion. Events are spelled here and nowhere else."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple, Protocol

from app.core.logging import Render, host_context, is_shown, json_line, write
from app.llm import conventions
from app.llm.errors import (
    LLMBudgetExceeded,
    LLMCancelled,
    LLMContractError,
    LLMError,
    LLMInternal,
    LLMNoCandidate,
    LLMProviderError,
)
from app.llm.metric_names import (
    ATTEMPT_DURATION_S,
    ATTEMPTS,
    BUDGET_REFUSALS,
    BUDGET_WARNINGS,
    CALL_DURATION_S,
    CALLS,
    COST_UNKNOWN,
    COST_USD,
    FALLBACKS,
    IN_FLIGHT,
    PROMPT_CACHE_TOKENS,
    QUEUE_WAIT_S,
    RETRIES,
    SERVED,
    TAKEOVERS,
    TOKENS,
    WHO,
)
from app.llm.ports import NewRun, ProviderReply
from app.llm.redaction import Redactor
from app.llm.tracing import CallSpan, LedgerSpan, Tracing, current_ids
from app.llm.types import Attempt, LLMProfile, LLMRequest, LLMResponse

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

_FAULTS = frozenset({"FAILED", "REFUSED"})
"""What makes the span of a call an error: a caller that went away does not."""
_OWN_WORDS = frozenset({"llm_run_id", "status", "served_from", "profile", "provider", "error_code"})
"""Fields that this package spells itself; all other texts are redacted."""

NAMES_REMEMBERED, NAME_CHARS = 1024, 64
"""Workspaces, stages and models come again and again: what redaction makes of such short texts is remembered."""

Readings = Iterable[tuple[Mapping[str, str], float]]
"""Labels with a value each, as they are now."""

_LEVELS: Mapping[str, int] = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Metrics(Protocol):
    """Counters, histograms and gauges behind a small port; `METRICS` lists the names. `PrometheusMetrics` is one."""

    def add(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Add to a counter, or to a gauge (negative values)."""
        ...

    def observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Record one value of a distribution."""
        ...

    def watch(self, name: str, read: Callable[[], Readings]) -> Callable[[], None]:
        """Have a gauge read when its values are wanted, in any thread; return what ends that."""
        ...


class Whose(NamedTuple):
    """Whom a call belongs to, as far as that was known when it ended."""

    llm_run_id: str | None = None
    workspace_id: str | None = None
    stage: str | None = None


class Telemetry:
    """What service, client and ledger call: one helper an occasion."""

    def __init__(
        self,
        *,
        metrics: Metrics | None = None,
        redactor: Redactor | None = None,
        log_content: bool = False,
        render: Render = json_line,
        tracing: Tracing | None = None,
    ) -> None:
        self._metrics = metrics
        self._render = render
        self._tracing = tracing or Tracing()
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
        if (ids := current_ids()) is not None:
            told["trace_id"], told["span_id"] = ids
        for field, value in host_context().items():
            told.setdefault(field, self._of_host(value))
        write(level, told, self._render)

    def _clean(self, text: str) -> str:
        return self._redact_name(text) if len(text) <= NAME_CHARS else self.redact(text)

    def _of_host(self, value: object) -> object:
        """Return a number as it is, of all else its text: nested values hold secrets too, and may hold themselves."""
        return value if value is None or isinstance(value, int | float) else self._clean(str(value))

    def lane_unfit(self, reason: str) -> None:
        """The installed LiteLLM has no dialect lane; calls go through `litellm.acompletion`."""
        self.event(EVENT_LANE_UNFIT, level="warning", wanted="dialect", lane="acompletion", reason=reason)

    def watch(self, name: str, read: Callable[[], Readings]) -> Callable[[], None]:
        """Have a gauge read when it is wanted; return what ends that."""
        return (lambda: None) if self._metrics is None else self._metrics.watch(name, read)

    def ledger(self, name: str, run_id: str) -> LedgerSpan | None:
        """Return the span of a ledger's transaction, for a `with` block; None where nobody traces."""
        return self._tracing.ledger(name, run_id)

    def taken_over(self, run_id: str, supersedes: str) -> None:
        """A key was taken over from a run whose owner died."""
        if self._metrics is not None:
            self._metrics.add(TAKEOVERS, 1, {})
        self.event(EVENT_TAKEOVER, level="warning", llm_run_id=run_id, supersedes=supersedes)

    def call_started(self) -> CallSpan | None:
        """A call came in; return its span, which `call_ended` takes."""
        if self._metrics is not None:
            self._metrics.add(IN_FLIGHT, 1, {})
        return self._tracing.begin_call()

    def call_ended(
        self,
        outcome: LLMResponse | BaseException,
        *,
        span: CallSpan | None,
        request: LLMRequest,
        profile: LLMProfile,
        latency_ms: float,
        whose: Whose,
    ) -> None:
        """A call went out: with an answer, refused, failed, or cancelled."""
        facts = _facts(outcome)
        labels = {**facts, "profile": profile.value}
        try:
            if self._metrics is not None:
                _count_call(self._metrics, labels, latency_ms)
            level = logging.WARNING if facts["status"] == "FAILED" else logging.INFO
            if is_shown(level):
                said: dict[str, object] = {
                    "latency_ms": round(latency_ms, 2),
                    **whose._asdict(),
                    **labels,
                }
                if self._log_content:
                    said["prompt"] = request.messages[-1].text
                    said["answer"] = outcome.text if isinstance(outcome, LLMResponse) else ""
                self._tell(EVENT_CALL, level, said)
        finally:
            if span is not None:
                told = self._said_of_call({**whose._asdict(), **labels}, outcome)
                span.end(told, failed=facts["status"] in _FAULTS)

    def _said_of_call(
        self, told: Mapping[str, str | None], outcome: LLMResponse | BaseException
    ) -> dict[str, str | int | None]:
        sends = outcome.attempts if isinstance(outcome, LLMResponse) else getattr(outcome, "attempts", ())
        answered = "served_from" in told
        return {
            conventions.RUN_ID: told["llm_run_id"],
            **{
                name: None if (value := told[field]) is None else self._clean(value)
                for name, field in ((conventions.WORKSPACE, "workspace_id"), (conventions.STAGE, "stage"))
            },
            conventions.PROFILE: told["profile"],
            conventions.STATUS: told["status"],
            conventions.SERVED_FROM: told.get("served_from"),
            conventions.ANSWERED_BY: f"{told['provider']}:{told['model']}" if answered else None,
            conventions.FAILED_ATTEMPTS: sum(send.status != "SUCCEEDED" for send in sends),
            conventions.ERROR_TYPE: told.get("error_code"),
        }

    def waited(self, waited_ms: float, *, provider: str) -> None:
        """A send got its slot."""
        if self._metrics is not None:
            self._metrics.observe(QUEUE_WAIT_S, waited_ms / 1000, {"provider": provider})

    def attempt_ended(
        self,
        attempt: Attempt,
        run: NewRun,
        *,
        asked: LLMRequest,
        reply: ProviderReply | None,
        streamed: bool,
    ) -> None:
        """One send ended: of what was `asked`, with a usable `reply` or without."""
        self._tracing.attempt(attempt, run, asked=asked, reply=reply, streamed=streamed)
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
        metrics.add(SERVED, 1, {"served_from": facts["served_from"]})
    metrics.observe(CALL_DURATION_S, latency_ms / 1000, labels)


def _count_attempt(metrics: Metrics, attempt: Attempt, labels: Mapping[str, str]) -> None:
    who = {name: labels[name] for name in WHO}
    metrics.add(ATTEMPTS, 1, {**labels, "status": attempt.status})
    metrics.observe(ATTEMPT_DURATION_S, attempt.latency_ms / 1000, who)
    usage = attempt.usage
    for name, kind, count in (
        (TOKENS, "input", usage.input_tokens),
        (TOKENS, "output", usage.output_tokens),
        (PROMPT_CACHE_TOKENS, "read", usage.cached_input_tokens),
        (PROMPT_CACHE_TOKENS, "written", usage.cache_write_tokens),
    ):
        if count:
            metrics.add(name, count, {**who, "kind": kind})
    if attempt.cost_usd is None:
        metrics.add(COST_UNKNOWN, 1, who)
    else:
        metrics.add(COST_USD, float(attempt.cost_usd), who)


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
