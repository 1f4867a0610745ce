"""What a fenced run answers with: the answer of the run that took its key over, if it has one before the deadline."""

from collections.abc import Callable

from app.llm.idempotency import FIRST_PAUSE_S
from app.llm.ports import Finished, InProgress, LLMRunRepo, Replay, StoredAnswer


async def answer_of_successor(
    repo: LLMRunRepo,
    finished: Finished,
    *,
    workspace_id: str,
    key: str | None,
    request_sha256: str,
    left_s: Callable[[], float],
) -> StoredAnswer | None:
    """Return the stored answer of the run that took a key over, waiting for it for `left_s()` seconds at most."""
    if finished.winner is not None:
        return finished.winner
    successor = finished.successor_run_id
    while successor and key and not repo.inline and (spare_s := left_s()) > 0:
        await repo.wait_finished(successor, min(spare_s, 10 * FIRST_PAUSE_S))
        state = await repo.get_by_idempotency_key(workspace_id, key, request_sha256)
        if isinstance(state, Replay):
            return state.answer
        if not isinstance(state, InProgress):  # it is nobody's, or another request's by now
            return None
    return None
