"""What a fenced run answers with: the answer of the run that took its key over, if it has one before the deadline."""

from contextlib import suppress

from app.llm.calls import Call
from app.llm.errors import LLMContractError
from app.llm.idempotency import FIRST_PAUSE_S, answer_of, replayed
from app.llm.ports import Finished, LLMRunRepo
from app.llm.types import LLMResponse


async def answer_of_successor(repo: LLMRunRepo, call: Call, finished: Finished) -> LLMResponse | None:
    """Return the stored answer of the run that took `call`'s key over, waiting for it until the deadline."""
    successor, key = finished.successor_run_id, call.key
    with suppress(LLMContractError):  # its text was not kept, or the key is another request's by now
        if finished.winner is not None:
            return answer_of(finished.winner)
        while successor and key and not repo.inline and (left_s := call.deadline.left_s()) > 0:
            await repo.wait_finished(successor, min(left_s, 10 * FIRST_PAUSE_S))
            state = await repo.get_by_idempotency_key(call.context.workspace_id, key, call.request_sha256)
            if state is None:
                return None
            if (response := replayed(state)) is not None:
                return response
    return None
