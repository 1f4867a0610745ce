"""Gauges of the state of a service, which are read at a scrape instead of being counted up and down by calls."""

from contextlib import AsyncExitStack

from app.llm.breaker import Breaker
from app.llm.limits import Limits
from app.llm.metric_names import BREAKER_OPEN, QUEUE_DEPTH, SLOTS
from app.llm.rates import Rates
from app.llm.telemetry import Readings, Telemetry


def watch(
    telemetry: Telemetry, limits: Limits, rates: Rates, breaker: Breaker, stack: AsyncExitStack
) -> None:
    """Let queues, slots and circuits be read until the stack is closed."""

    def queues() -> Readings:
        in_line = rates.waiting()
        return [
            ({"provider": provider}, waiting + in_line.get(provider, 0))
            for provider, waiting in limits.waiting().items()
        ]

    def slots() -> Readings:
        return [({"provider": provider}, width) for provider, width in limits.widths().items()]

    def circuits() -> Readings:
        names = [(name.partition(":"), is_open) for name, is_open in breaker.states().items()]
        return [({"provider": name[0], "model": name[2]}, float(is_open)) for name, is_open in names]

    stack.callback(telemetry.watch(QUEUE_DEPTH, queues))
    stack.callback(telemetry.watch(SLOTS, slots))
    stack.callback(telemetry.watch(BREAKER_OPEN, circuits))
