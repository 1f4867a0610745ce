"""Breaks of streams: the commit at the first delta, what is kept of a beginning, the time limits, the early leave."""

from tests.sabotage.patch import Break

_HERE = "app/llm/"
SENDS, STREAMS = (f"{_HERE}{name}.py" for name in ("sends", "streams"))
OUTLET, READERS, HTTP = (f"{_HERE}wire/{name}.py" for name in ("outlet", "readers", "http"))
SERVED, WIRE = "tests/unit/llm/test_streams.py::test_", "tests/wire/test_streams.py::test_"
OVER_HTTP = "tests/crash/test_streams.py::test_"

STREAM_BREAKS = (
    Break(
        "an-error-after-the-first-delta-falls-back",
        "streams",
        SENDS,
        "if self.heard:\n            return Stop(",
        "if not self.attempts:\n            return Stop(",
        (SERVED + "after_it_an_error_is_final_and_what_had_arrived_is_kept",),
    ),
    Break(
        "a-stream-is-committed-before-its-first-delta",
        "streams",
        SENDS,
        "if self.heard:\n            return Stop(",
        "if self.tell:\n            return Stop(",
        (SERVED + "before_the_first_delta_the_next_candidate_is_asked",),
    ),
    Break(
        "a-broken-stream-counts-as-unpaid",
        "streams",
        SENDS,
        "outcome.possibly_paid = True",
        "outcome.possibly_paid = outcome.possibly_paid",
        (SERVED + "after_it_an_error_is_final_and_what_had_arrived_is_kept",),
    ),
    Break(
        "what-had-arrived-is-lost",
        "streams",
        "app/llm/service.py",
        "partial=parts_of(sends.heard),",
        "",
        (SERVED + "leaving_the_block_cancels_the_call_and_keeps_what_had_arrived",),
    ),
    Break(
        "a-partial-answer-looks-whole",
        "streams",
        "app/llm/persistence/codec.py",
        "return _encoded(parts, UNKNOWN_USAGE, None, provider, model)",
        "return _encoded(parts, UNKNOWN_USAGE, FinishReason.STOP, provider, model)",
        (SERVED + "after_it_an_error_is_final_and_what_had_arrived_is_kept",),
    ),
    Break(
        "a-failed-run-keeps-its-key",
        "streams",
        "app/llm/persistence/statements.py",
        'idem_slot=sa.case((_bind("status") == _literal(SUCCEEDED), runs.c.idem_slot), else_=_NULL),',
        "idem_slot=runs.c.idem_slot,",
        (SERVED + "a_partial_answer_is_neither_replayed_nor_a_hit",),
    ),
    Break(
        "a-stall-within-an-answer-is-waited-for",
        "streams",
        OUTLET,
        "self._limit.move(min(until_s, self._ends_at_s))",
        "self._limit.move(self._ends_at_s)",
        (WIRE + "a_silence_between_two_chunks_is_a_stall",),
        hangs_s=20,
    ),
    Break(
        "a-slow-listener-is-a-stall",
        "streams",
        OUTLET,
        "self._limit.move(self._ends_at_s)\n            await self._on_delta(delta)",
        "await self._on_delta(delta)",
        (WIRE + "a_slow_listener_is_no_stall_of_the_provider",),
    ),
    Break(
        "a-stream-has-no-end",
        "streams",
        OUTLET,
        "self._ends_at_s = self._clock() + listener.left_s",
        "self._ends_at_s = self._clock() + 3600",
        (WIRE + "the_calls_time_ends_a_stream_that_goes_on",),
        hangs_s=20,
    ),
    Break(
        "leaving-early-leaves-the-call-running",
        "streams",
        STREAMS,
        "self._task.cancel()\n            await asyncio.wait([self._task])",
        "pass",
        (OVER_HTTP + "a_listener_that_leaves_early_closes_the_providers_connection",),
        hangs_s=30,
    ),
    Break(
        "a-dropped-iterator-leaves-the-call-running",
        "streams",
        STREAMS,
        "task.get_loop().call_soon_threadsafe(task.cancel)",
        "pass",
        (SERVED + "an_iterator_that_is_dropped_leaves_no_task",),
        hangs_s=30,
    ),
    Break(
        "an-answer-without-its-end-is-taken",
        "streams",
        READERS,
        'raise BrokenOff("the stream ended before the answer did")',
        "pass",
        (WIRE + "a_stream_that_goes_wrong_ends_with_its_error",),
    ),
    Break(
        "an-error-within-a-stream-is-skipped",
        "streams",
        READERS,
        'if payload.get("error") is not None and not self.finished:',
        "if False:",
        (WIRE + "a_stream_that_goes_wrong_ends_with_its_error",),
    ),
    Break(
        "a-stream-has-no-cap",
        "streams",
        HTTP,
        "if self._size > self._exchange.max_bytes:",
        "if False:",
        (WIRE + "a_stream_larger_than_the_cap_is_refused",),
    ),
    Break(
        "nothing-holds-the-provider-back",
        "streams",
        STREAMS,
        "while len(self._waiting) >= ROOM:",
        "while False:",
        (SERVED + "a_slow_listener_holds_the_provider_back",),
    ),
)
