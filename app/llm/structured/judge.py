"""What a caller's check makes of the answers of one run: who is asked again, with which words, and what was refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.llm.candidates import Candidate
from app.llm.checks import Check, Objection, Rejected
from app.llm.errors import (
    LLMContentFiltered,
    LLMInternal,
    LLMInvalidOutput,
    LLMKeyConflict,
    LLMProviderError,
)
from app.llm.messages import Message
from app.llm.ports import ProviderReply, StoredAnswer
from app.llm.structured.means import as_able
from app.llm.types import FinishReason, LLMRequest, LLMResponse

CUT_OFF = Objection(faults=("the answer was cut off at its longest length: raise max_output_tokens",))
"""Of every truncated answer, whatever its text is: what is missing may have been optional."""


@dataclass(slots=True, kw_only=True)
class Judge:
    """Judges the replies of one run; without a check each of them counts."""

    check: Check | None = None
    rejected: list[Rejected] = field(default_factory=list)
    """The answers that did not pass, in order."""
    _asked: str | None = None
    _questions: int = 0
    _turns: tuple[Message, ...] = ()

    def question(self, request: LLMRequest, candidate: Candidate) -> LLMRequest:
        """Return what the candidate is asked now: the request, then what it said before and what was wrong with it."""
        if candidate.name != self._asked:
            self._asked, self._questions, self._turns = candidate.name, 0, ()
        asked = as_able(request.as_sent_to(candidate.provider), candidate)
        if not self._turns:
            return asked
        return asked.model_copy(update={"messages": (*asked.messages, *self._turns)})

    def refusal(self, candidate: Candidate, reply: ProviderReply) -> LLMProviderError | None:
        """Return why a reply is not the answer; None if it is."""
        if self.check is None:
            return None
        facts = {
            "provider": candidate.provider,
            "model": candidate.model,
            "http_status": reply.http_status,
            "usage": reply.usage,
            "possibly_paid": True,
        }
        if reply.finish_reason is FinishReason.CONTENT_FILTER:
            return LLMContentFiltered(f"{candidate.name} filtered the answer", **facts)
        try:
            objection = objection_to(reply, self.check)
        except Exception as defect:  # noqa: BLE001  # the caller's code; the send is recorded all the same
            return _broken(defect, candidate.name, facts)
        return None if objection is None else self._refused(objection, candidate, reply, facts)

    def _refused(
        self, objection: Objection, candidate: Candidate, reply: ProviderReply, facts: Mapping[str, object]
    ) -> LLMInvalidOutput:
        self.rejected.append(
            Rejected(
                provider=candidate.provider.value,
                model=candidate.model,
                parts=reply.parts,
                finish_reason=reply.finish_reason,
                faults=tuple(objection.faults),
            )
        )
        self._questions += 1
        self._turns += tuple(objection.turns)
        error = LLMInvalidOutput(
            f"{candidate.name} gave an answer that is not valid ({len(self.rejected)} in this call): "
            "`rejected` holds the answers and their faults",
            **facts,
        )
        error.retryable = bool(objection.turns) and self._questions < (self.check.tries if self.check else 0)
        return error


def objection_to(said: ProviderReply | LLMResponse, check: Check) -> Objection | None:
    """Return what is wrong with an answer; None if it is complete and passes the check."""
    return CUT_OFF if said.finish_reason is FinishReason.LENGTH else check.objection(said)


def passes(check: Check | None, found: Mapping[str, StoredAnswer]) -> Mapping[str, StoredAnswer]:
    """Return those of the cached answers that may be served."""
    if check is None:
        return found
    return {
        identity: stored
        for identity, stored in found.items()
        if stored.response is None or objection_to(stored.response, check) is None
    }


def check_replay(check: Check | None, stored: LLMResponse) -> None:
    """Refuse the stored answer of a key that is not what is asked for now.

    Raises:
        LLMKeyConflict: It does not pass.
    """
    objection = None if check is None else objection_to(stored, check)
    if objection is not None:
        raise LLMKeyConflict(
            f"the answer of run {stored.run_id} belongs to this key, and is no valid answer to what is asked for now "
            f"({len(objection.faults)} faults): use another key, or force_new_execution=True to ask again",
            run_id=stored.run_id,
            faults=tuple(objection.faults),
        )


def _broken(defect: Exception, name: str, facts: Mapping[str, object]) -> LLMInternal:
    error = LLMInternal(f"the check of an answer of {name} failed with {type(defect).__name__}", **facts)
    error.__cause__ = defect
    return error
