"""How many statements a run takes: where no budget is over it, none is for budgets."""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest

from app.llm.budgets import Reservation
from app.llm.fields.budgets import Budget
from app.llm.persistence import ledger
from app.llm.persistence import statements as sql
from app.llm.persistence import statements_budgets as counting
from app.llm.persistence.executor import Result, Step, Steps
from app.llm.persistence.ledger import ClaimRules
from app.llm.persistence.models import STARTED
from app.llm.persistence.settlement import of_success
from app.llm.ports import NewRun
from tests.support.ledger import new_run, request, success

RULES = ClaimRules(owner="me", cache_ttl_s=60, key_ttl_s=None, refuse_abandoned=False)
HELD = Reservation(
    workspace_id="w1", limits=(Budget(workspace="w1", per="day", tokens=100),), tokens=40, usd=Decimal(0)
)
NONE, DONE = Result((), 0), Result((), 1)


def statements(steps: Steps[Any], results: Sequence[Result]) -> Iterator[Any]:
    """Yield what the steps execute, given these results, and 1 for each step after them."""
    given = iter(results)
    try:
        step: Step = next(steps)
        while True:
            yield step.statement
            step = steps.send(next(given, DONE))
    except StopIteration:
        return


def dead(run: NewRun, held: int | None, **more: Any) -> Mapping[str, Any]:
    """Return the row of a run like this one, whose owner is dead."""
    return {
        "id": "dead",
        "status": STARTED,
        "request_sha256": run.request_sha256,
        "fingerprint_version": ledger.FINGERPRINT_VERSION,
        "execution": 1,
        "lease_left_s": -1.0,
        "reserved_tokens": held,
        **more,
    }


def test_a_claim_is_one_statement_and_so_is_a_finish():
    run = new_run()
    assert [*statements(ledger.claim(run, RULES), [DONE])] == [sql.INSERT_RUN]
    settled = of_success(run, success(run), owner="me", key_ttl_s=None, keep=True)
    assert [*statements(ledger.finish(settled), [DONE])] == [sql.FINISH_ANSWERED]
    assert [*statements(ledger.note_send(run.run_id, "me", 2), [DONE])] == [sql.NOTE_SENDS]


def test_a_run_under_budgets_is_counted_in_its_day_and_its_month():
    run = new_run(reservation=HELD)
    assert [*statements(ledger.claim(run, RULES), [])] == [sql.INSERT_RUN, *[counting.RESERVE] * 2]
    settled = of_success(run, success(run), owner="me", key_ttl_s=None, keep=True)
    assert [*statements(ledger.finish(settled), [])] == [
        sql.FINISH_ANSWERED,
        counting.SETTLE,
        counting.CHARGE,
    ]


@pytest.mark.parametrize(("held", "more"), [(None, []), (40, [counting.ABANDON])])
def test_a_takeover_counts_what_the_dead_run_held_if_it_held_anything(held: int | None, more: list[Any]):
    run = new_run(request(idempotency_key="k1"))
    results = [NONE, Result((dead(run, held),), 0)]
    made = [*statements(ledger.claim(run, RULES), results)]
    assert made == [sql.INSERT_RUN, sql.KEY_HOLDER, sql.TAKE_OVER, *more, sql.INSERT_RUN]


@pytest.mark.parametrize(("held", "more"), [(None, []), (40, [counting.ABANDON])])
def test_the_leader_of_a_flight_counts_likewise(held: int | None, more: list[Any]):
    run = new_run(flight=True)
    results = [NONE, Result((dead(run, held, idem_slot=None),), 0)]
    made = [*statements(ledger.claim(run, RULES), results)]
    assert made == [sql.INSERT_RUN, sql.FLIGHT_HOLDER, sql.TAKE_OVER, *more, sql.INSERT_RUN]
