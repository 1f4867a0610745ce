"""Breaks of turns and rates: what is taken, given back and told, in one process and between several."""

from tests.sabotage.patch import Break

_HERE = "app/llm/"
PACING, RATES, SENDS, LIMITS, ADAPTING = (
    f"{_HERE}{name}.py" for name in ("pacing", "rates", "sends", "limits", "adapting")
)
STATEMENTS, SHARED = (f"{_HERE}persistence/{name}.py" for name in ("statements_rates", "rates"))
TURNS, WIRE = "tests/unit/llm/test_rates.py::test_", "tests/wire/test_rates.py::test_"
PACES, WIDTHS = (f"tests/property/test_{name}.py::test_" for name in ("pacing", "adapting"))
TOGETHER = "tests/conformance/test_shared_rates.py::test_"

RATE_BREAKS = (
    Break(
        "minute-takes-more-than-its-rate",
        "rates",
        PACING,
        "each_s=60.0 / (count - burst + 1)",
        "each_s=60.0 / (count + burst)",
        (PACES + "no_minute_has_more_requests_than_the_rate_says",),
    ),
    Break(
        "unused-place-is-lost",
        "rates",
        RATES,
        "self._meter.give_back(self._provider, self._tokens, self._told)",
        "pass",
        (TURNS + "a_turn_that_did_not_send_leaves_the_rate_as_it_was",),
    ),
    Break(
        "places-gather-behind-a-slot",
        "rates",
        RATES,
        "return None if told is None else Turn(self._meter, line, asking, told)",
        "return None if told is None else (line.door.release(), Turn(self._meter, None, asking, told))[1]",
        (TURNS + "places_do_not_gather_behind_a_slot_that_is_not_free",),
    ),
    Break(
        "who-cannot-wait-so-long-waits-all-the-same",
        "rates",
        RATES,
        "if max(held_s, soonest_s) > patience_s:",
        "if held_s > patience_s:",
        (TURNS + "who_cannot_wait_so_long_is_told_at_once_when_to_come_back",),
        hangs_s=10,
    ),
    Break(
        "queued-call-runs-into-the-wall",
        "rates",
        SENDS,
        "self.rates.refuse_held(send.candidate)",
        "pass",
        (WIRE + "a_call_in_the_queue_for_a_slot_does_not_run_into_the_wall_either",),
    ),
    Break(
        "wait-for-a-turn-is-not-recorded",
        "rates",
        SENDS,
        "self._waited(send, send.turn_ms + waited_ms)",
        "self._waited(send, waited_ms)",
        (WIRE + "calls_beyond_the_rate_wait_their_turn_and_the_wait_is_on_their_rows",),
    ),
    Break(
        "place-is-taken-that-is-not-there",
        "rates",
        STATEMENTS,
        'return sa.case((wait_s <= _NONE, largest(column, now_s) + _bind(f"{kind}_s")), else_=column)',
        'return largest(column, now_s) + _bind(f"{kind}_s")',
        (TOGETHER + "who_gets_no_place_is_told_how_long_to_wait_and_takes_nothing",),
    ),
    Break(
        "cancelled-asking-keeps-its-place",
        "rates",
        SHARED,
        "self._begin(self._undo(asking, candidate.provider, tokens))",
        "pass",
        (TOGETHER + "who_is_cancelled_while_it_asks_leaves_no_place_taken",),
    ),
    Break(
        "overload-halves-once-for-each-send",
        "slots",
        ADAPTING,
        "if era == self.era:",
        "if era <= self.era:",
        (WIDTHS + "a_width_stays_between_its_bounds",),
    ),
    Break(
        "slot-is-lost-with-who-left",
        "slots",
        LIMITS,
        "if waiter.done() and not waiter.cancelled():",
        "if not waiter.done():",
        (
            "tests/unit/llm/test_limits.py::test_a_slot_that_was_given_to_somebody_who_left_is_given_to_the_next",
        ),
    ),
    Break(
        "replay-waits-as-the-provider-asked",
        "rates",
        RATES,
        'if not for_s or "served_from" in outcome.facts:',
        "if not for_s:",
        (TURNS + "what_a_cassette_says_holds_nobody_back",),
    ),
)
