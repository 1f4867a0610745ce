"""What `simulate` does once its options are read; loaded by it alone, because that takes time."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from app.bootstrap import payload_codec
from app.cli.ledger import existing
from app.llm.persistence.recorded import recorded_calls
from app.llm.routing_file import Origins
from app.llm.settings import LLMSettings, load_settings
from app.llm.simulation import Moves, Share, Simulation, World, total

Tables = Iterator[tuple[str, tuple[str, ...], list[list[object]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What came of it, and what stood in its way."""

    moves: Moves
    warnings: list[str]


async def simulated(config: str, *, newer_than_s: float, workspace_id: str | None) -> Simulated:
    """Return what a routing file would change; the ledger is that of the settings in force."""
    settings, other = load_settings(), load_settings(config_file=config)
    simulation = Simulation(now=World.of(settings), then=World.of(other))
    async with existing(settings) as executor:
        calls = recorded_calls(
            executor, payload_codec(settings), newer_than_s=newer_than_s, workspace_id=workspace_id
        )
        async for call in calls:
            simulation.add(call)
    moves = simulation.outcome()
    return Simulated(moves=moves, warnings=[*_overruled(type(other), config), *_unread(moves)])


def as_document(moves: Moves) -> dict[str, Any]:
    """Return the outcome as JSON values."""
    return {
        "runs": moves.runs,
        "unread": moves.unread,
        "moved": [{"from": a, "to": b, "runs": runs} for (a, b), runs in moves.moved.most_common()],
        "no_candidate": [
            {"from": a, "why": why, "runs": runs} for (a, why), runs in moves.homeless.most_common()
        ],
        "before": _world(moves, moves.before),
        "after": _world(moves, moves.after),
    }


def as_tables(moves: Moves) -> Tables:
    """Yield title, columns and rows of each table that says something."""
    if moves.moved:
        yield "moves", ("from", "to", "runs"), [[a, b, runs] for (a, b), runs in moves.moved.most_common()]
    if moves.homeless:
        rows: list[list[object]] = [[a, why, runs] for (a, why), runs in moves.homeless.most_common()]
        yield "no candidate", ("from", "why", "runs"), rows
    columns = ("candidate", "runs", "then", "tokens", "then", "cost USD", "then", "median ms")
    names = dict.fromkeys((*moves.before, *moves.after))
    table = [
        _row(name, moves.before.get(name), moves.after.get(name), moves.latency_ms.get(name))
        for name in names
    ]
    whole = _row("all", total(moves.before.values()), total(moves.after.values()), None)
    yield "before and then", columns, [*table, whole]
    before, after = (_expected(moves, shares) for shares in (moves.before, moves.after))
    yield "latency expected from recorded medians", ("now", "then"), [[before, after]]


def _row(name: str, before: Share | None, after: Share | None, latency_ms: float | None) -> list[object]:
    now, then = before or Share(), after or Share()
    return [
        name,
        *(
            now.runs,
            then.runs,
            _known(f"{now.tokens:,}", now.tokens_unknown),
            _known(f"{then.tokens:,}", then.tokens_unknown),
        ),
        *(_known(f"{now.cost_usd:.4f}", now.cost_unknown), _known(f"{then.cost_usd:.4f}", then.cost_unknown)),
        None if latency_ms is None else f"{latency_ms:.0f}",
    ]


def _known(text: str, unknown: int) -> str:
    return f"{text} + {unknown} unknown" if unknown else text


def _expected(moves: Moves, shares: dict[str, Share]) -> str:
    mean, unknown = moves.expected_ms(shares)
    return _known("-" if mean is None else f"{mean:.0f} ms", unknown)


def _world(moves: Moves, shares: dict[str, Share]) -> dict[str, Any]:
    mean, unknown = moves.expected_ms(shares)
    return {
        **asdict(total(shares.values())),
        "expected_latency_ms": mean,
        "latency_unknown": unknown,
        "candidates": [
            {"name": name, **asdict(share), "median_latency_ms": moves.latency_ms.get(name)}
            for name, share in shares.items()
        ],
    }


def _overruled(kind: type[LLMSettings], config: str) -> Iterator[str]:
    """Yield the variables that beat what the file says."""
    origins = Origins.of(kind, {"config_file": config}, kind.read_file)
    file = origins.file()
    for field in dict.fromkeys(loc[0] for loc in file.places) if file else ():
        origin = origins.origin(field)
        if origin.source in {"environment", ".env"}:
            yield f"{origin.name} ({origin.source}) beats what {config} says"


def _unread(moves: Moves) -> Iterator[str]:
    if moves.unread:
        yield f"{moves.unread} runs are left out: their requests are not stored, or cannot be read"
