"""How a run ended, as plain values: what one finishing transaction writes, and what a spool line carries."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from app.llm.budgets import Charge, charge_of
from app.llm.persistence.codec import (
    PLAIN,
    Codec,
    encode_partial,
    encode_request,
    encode_response,
    encode_result,
)
from app.llm.persistence.models import SUCCEEDED
from app.llm.ports import Done, Failure, NewRun, Success
from app.llm.pricing import FREE, Price, price_for, price_of
from app.llm.responses import paid
from app.llm.types import Attempt, LLMResponse, ServedFrom, TokenUsage

MAX_ERROR_CHARS = 500
MAX_INT = 2**63 - 1
MAX_SMALL_INT = 2**31 - 1
MAX_COST_USD = Decimal(10**6)
_PROVIDER, _CASSETTE = "provider", "cassette"
"""Who counted the tokens, and when: now, or when the call was recorded."""

Values = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """Values for FINISH (`run`), the attempt rows, and the payload rows."""

    workspace_id: str
    key: str | None
    request_sha256: str
    run: Values
    attempts: tuple[Values, ...]
    payloads: tuple[Values, ...]
    charge: Charge | None = None
    """What it counts under the budgets over its workspace; None where there were none."""

    @property
    def run_id(self) -> str:
        """The run that is settled."""
        return str(self.run["id"])


def of_success(  # facts of the run, choices of the settings
    run: NewRun,
    success: Success,
    *,
    owner: str,
    key_ttl_s: float | None,
    keep: bool,
    codec: Codec = PLAIN,
) -> Settlement:
    """Return how a run with an answer is settled; `keep` is whether payload bytes are stored, by `codec`."""
    response = success.response
    asked, said = encode_request(run.request), encode_response(response)
    texts = _addressed(run, (asked, said), codec)
    served = success.source_run_id is not None
    values = _common(run, owner, success.attempts, success.queue_wait_ms, response.latency_ms)
    values |= {
        "status": SUCCEEDED, "provider": response.provider.value, "model": response.model,
        "candidate_sha256": success.candidate_sha256, "finish_reason": response.finish_reason.value,
        **_tokens(response.usage, _CASSETTE if response.served_from is ServedFrom.CASSETTE else _PROVIDER),
        "source_run_id": success.source_run_id, "cost_usd": storable_cost(response.cost_usd),
        "expires_s": key_ttl_s if run.idempotency_key else None,
        "request_payload": texts[0][0] if keep else None, "response_payload": texts[1][0] if keep else None,
        **(saved_by(run, response) if served else {}),
    }  # fmt: skip
    return _settlement(run, values, success.attempts, _stored(run, texts, codec) if keep else ())


def saved_by(run: NewRun, response: LLMResponse) -> Values:
    """Return what an answer that is served to a run did not cost this time, at today's price."""
    usage, price = response.original_usage, _price(run, response)
    saved_usd = price.cost_usd(usage, with_sound=run.route.needs.audio)
    return {
        "saved_input_tokens": _count(usage.input_tokens), "saved_output_tokens": _count(usage.output_tokens),
        "saved_cost_usd": storable_cost(saved_usd), "price_version": price.version,
    }  # fmt: skip


def _price(run: NewRun, response: LLMResponse) -> Price:
    """Return what its candidate would have taken: nothing where it is local."""
    named = (
        each for each in run.route.kept if (each.provider, each.model) == (response.provider, response.model)
    )
    candidate = next(named, None)
    return price_for(candidate) if candidate else price_of(response.provider, response.model)


def of_effect(  # as above
    run: NewRun, done: Done, *, owner: str, key_ttl_s: float | None, keep: bool, codec: Codec = PLAIN
) -> Settlement:
    """Return how an effect whose work is done is settled: as a run without sends, tokens and cost."""
    texts = _addressed(run, (encode_request(run.request), encode_result(done.result)), codec)
    values = _common(run, owner, (), 0.0, done.latency_ms)
    values |= {
        "status": SUCCEEDED, **_tokens(TokenUsage()), "cost_usd": FREE, "expires_s": key_ttl_s,
        "request_payload": texts[0][0] if keep else None, "response_payload": texts[1][0] if keep else None,
    }  # fmt: skip
    return _settlement(run, values, (), _stored(run, texts, codec) if keep else ())


def of_failure(  # as above
    run: NewRun,
    failure: Failure,
    *,
    status: Literal["FAILED", "CANCELLED"],
    owner: str,
    keep: bool,
    redact: Callable[[str], str] = str,
    codec: Codec = PLAIN,
) -> Settlement:
    """Return how a run without an answer is settled, with what had arrived; its error's text goes through `redact`."""
    said: tuple[bytes, ...] = ()
    if failure.partial and failure.attempts:
        last = failure.attempts[-1]
        said = (encode_partial(failure.partial, last.provider, last.model),)
    texts = _addressed(run, (encode_request(run.request), *said), codec)
    values = _common(run, owner, failure.attempts, failure.queue_wait_ms, failure.latency_ms)
    values |= {
        "status": status, "error_code": failure.error.code,
        "error_message": storable(redact(failure.error.message)) if keep else None,
        "request_payload": texts[0][0] if keep else None,
        "response_payload": texts[1][0] if keep and said else None,
        **_tokens(TokenUsage()),
        "cost_usd": storable_cost(paid(failure.attempts)),
    }  # fmt: skip
    return _settlement(run, values, failure.attempts, _stored(run, texts, codec) if keep else ())


def storable(text: str) -> str:
    """Return text that every database takes: no NULs, no lone surrogates, not too long."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()[:MAX_ERROR_CHARS]


def storable_cost(cost_usd: Decimal | None) -> Decimal | None:
    """Return dollars, or None where no column could hold them."""
    return None if cost_usd is None or cost_usd >= MAX_COST_USD else cost_usd


def _common(run: NewRun, owner: str, attempts: Any, queue_wait_ms: float, latency_ms: float) -> Values:
    last = attempts[-1] if attempts else None
    provider, model, identity = (
        (last.provider.value, last.model, last.candidate_sha256) if last else run.first
    )
    return {
        "id": run.run_id, "owner": owner, "provider": provider, "model": model, "candidate_sha256": identity,
        "finish_reason": None, "cost_usd": None, "queue_wait_ms": queue_wait_ms, "latency_ms": latency_ms,
        "error_code": None, "error_message": None, "source_run_id": None, "saved_input_tokens": None,
        "saved_output_tokens": None, "saved_cost_usd": None,
        "price_version": last.price_version if last else None, "expires_s": None, "request_payload": None, "response_payload": None,
        "possibly_paid": True in [attempt.possibly_paid for attempt in attempts],
    }  # fmt: skip


def _tokens(usage: TokenUsage, source: str = _PROVIDER) -> Values:
    total = usage.total_tokens
    return {
        "input_tokens": _count(usage.input_tokens), "output_tokens": _count(usage.output_tokens),
        "total_tokens": _count(total), "usage_source": None if total is None else source,
    }  # fmt: skip


def _addressed(run: NewRun, texts: tuple[bytes, ...], codec: Codec) -> list[tuple[str, bytes]]:
    return [(codec.address(text, workspace_id=run.workspace_id), text) for text in texts]


def _stored(run: NewRun, texts: list[tuple[str, bytes]], codec: Codec) -> tuple[Values, ...]:
    rows = []
    for address, text in dict(texts).items():
        number, data = codec.encode(text, workspace_id=run.workspace_id, address=address)
        rows.append({"workspace_id": run.workspace_id, "sha256": address, "codec": number, "bytes": data})
    return tuple(rows)


def _settlement(run: NewRun, values: Values, attempts: Any, payloads: tuple[Values, ...]) -> Settlement:
    return Settlement(
        workspace_id=run.workspace_id,
        key=run.idempotency_key,
        request_sha256=run.request_sha256,
        run=values,
        attempts=tuple(_attempt(run.run_id, attempt) for attempt in attempts),
        payloads=payloads,
        charge=None if run.reservation is None else _charge(run, values, attempts),
    )


def _charge(run: NewRun, values: Values, attempts: Any) -> Charge:
    """Return what the run counts; its cost is unknown where its row says so."""
    return charge_of(run.route, attempts)._replace(unknown=int(values["cost_usd"] is None))


def _attempt(run_id: str, attempt: Attempt) -> Values:
    return {
        "run_id": run_id, "ordinal": attempt.ordinal, "provider": attempt.provider.value, "model": attempt.model,
        "candidate_sha256": attempt.candidate_sha256, "status": attempt.status, "error_code": attempt.error_code,
        "http_status": _count(attempt.http_status, MAX_SMALL_INT), "retry_after_s": attempt.retry_after_s,
        "started_at": attempt.started_at, "finished_at": attempt.finished_at,
        "input_tokens": _count(attempt.usage.input_tokens), "output_tokens": _count(attempt.usage.output_tokens),
        "cached_input_tokens": _count(attempt.usage.cached_input_tokens),
        "cost_usd": storable_cost(attempt.cost_usd), "possibly_paid": attempt.possibly_paid,
    }  # fmt: skip


def _count(number: int | None, largest: int = MAX_INT) -> int | None:
    """Return a provider's figure, or None where no column could hold it."""
    return None if number is None or not 0 <= number <= largest else number
