"""What `replay` does once its options are read; loaded by it alone, because that takes time."""

from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

from app.bootstrap import build_llm_service
from app.cli import ledger
from app.cli.faults import NotFound, UsageFault
from app.cli.run_view import answered, candidate, said
from app.llm.persistence.codec import decode_request, to_json
from app.llm.persistence.models import STARTED
from app.llm.persistence.reports import Row, RunDetails
from app.llm.ports import TOOL
from app.llm.providers import Catalog
from app.llm.settings import LLMSettings, load_settings
from app.llm.types import (
    CacheMode,
    LLMCallContext,
    LLMConstraints,
    LLMRequest,
    LLMResponse,
    TokenUsage,
    checked_model,
)

REPEATS = "repeats"
"""Name in the metadata of a repetition under which the run stands that it repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two answers, as it is compared."""

    run: str
    candidate: str | None
    status: str
    finish_reason: str | None
    error: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: Any
    """Decimal; None is unknown."""
    latency_ms: float | None
    text: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Words that one side has in place of the other's."""

    original: str
    replay: str
    is_same: bool
    """The words are those of both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """A recorded run, and the same request somewhere else."""

    original: Side
    replay: Side

    @property
    def differences(self) -> list[Difference]:
        """What the texts share and what they do not, in their order."""
        return differences(self.original.text or "", self.replay.text or "")


async def repeated(start: str, on: str) -> Repetition:
    """Send the request of a recorded run to another candidate, as a run of its own.

    Raises:
        NotFound: No run, several, or one that cannot be repeated.
        UsageFault: `on` is no candidate's name, or nothing would be recorded.
        LLMError: The candidate gave no answer.
    """
    settings = load_settings()
    _check(settings, on)
    details = await ledger.shown(start)
    run = details.run
    request = repetition_of(details, on)
    context = LLMCallContext(workspace_id=run["workspace_id"], stage=run["stage"])
    async with build_llm_service(settings) as service:
        await service.warm_up()  # else its latency would be that of a library that is loaded
        response = await service.chat(request, context=context)
    return Repetition(original=_recorded(details), replay=_live(response))


def repetition_of(details: RunDetails, on: str) -> LLMRequest:
    """Return the request of a run as it is sent to `on` alone: without its key and past the cache.

    Of its limits `local_only` stays; which provider is asked is chosen anew.

    Raises:
        NotFound: The run is no call, or its request is not there to be read.
    """
    run = details.run
    request = decode_request(to_json(details.request).encode()) if details.request is not None else None
    if not isinstance(request, LLMRequest):
        raise NotFound(f"run {run['id']} cannot be repeated: {_obstacle(details)}")
    return request.model_copy(
        update={
            "model": on,
            "constraints": LLMConstraints(local_only=request.constraints.local_only, allow_fallback=False),
            "idempotency_key": None,
            "asked_sha256": None,
            "force_new_execution": False,
            "cache": CacheMode.BYPASS,
            "metadata": {REPEATS: run["id"]},
        }
    )


def differences(original: str, replay: str) -> list[Difference]:
    """Return two texts word by word; joined, the words of a side are its text."""
    one, other = _words(original), _words(replay)
    return [
        Difference(original="".join(one[a:b]), replay="".join(other[c:d]), is_same=what == "equal")
        for what, a, b, c, d in SequenceMatcher(None, one, other).get_opcodes()
    ]


def _check(settings: LLMSettings, on: str) -> None:
    try:
        checked_model(on)
    except ValueError as error:
        raise UsageFault(f"--on: {error}") from None
    Catalog.from_settings(settings).pinned(on)
    if not settings.persist_runs:
        raise UsageFault("LLM_PERSIST_RUNS=false: the repetition would not be recorded")


def _obstacle(details: RunDetails) -> str:
    run = details.run
    if run["profile"] == TOOL:
        return f"it is the effect {run['model']}, not a call"
    if details.encrypted:
        return "its request is encrypted (set LLM_PAYLOAD_KEY)"
    if run["status"] == STARTED:
        return "it is under way, and a request is stored when its run ends"
    if details.request is None:
        return "its request is not stored (LLM_STORE_PAYLOADS=hash, or it was pruned)"
    return "its request is of another version"


def _recorded(details: RunDetails) -> Side:
    """Return the side of the ledger; of a hit what its answer took when it was made."""
    run = details.run
    kept = "saved_" if run["source_run_id"] else ""
    return Side(
        run=run["id"],
        candidate=candidate(run),
        status=run["status"],
        finish_reason=run["finish_reason"],
        error=run["error_code"],
        **{name: run[f"{kept}{name}"] for name in ("input_tokens", "output_tokens", "cost_usd")},
        latency_ms=_latency_ms(run),
        text=answered(details.response),
    )


def _latency_ms(run: Row) -> float | None:
    return None if run["source_run_id"] else run["latency_ms"]


def _live(response: LLMResponse) -> Side:
    usage: TokenUsage = response.usage
    parts = [part.model_dump(mode="json") for part in response.parts]
    return Side(
        run=response.run_id,
        candidate=f"{response.provider}:{response.model}",
        status="SUCCEEDED",
        finish_reason=response.finish_reason.value,
        error=None,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost_usd=response.cost_usd,
        latency_ms=response.latency_ms,
        text=said(parts),
    )


def _words(text: str) -> list[str]:
    """Return a text cut before each word, so that nothing of it is lost."""
    cuts = [0, *(at for at in range(1, len(text)) if text[at - 1].isspace() and not text[at].isspace())]
    return [text[a:b] for a, b in pairwise([*cuts, len(text)])]
