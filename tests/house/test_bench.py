"""The bench keeps its own word: no target without its figure, no failure that looks like a measurement."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from app.llm import LLMRequest, ServedFrom
from app.llm.router import _route_of_short_prompts
from app.llm.testing.client import ScriptedClient
from bench import report, runner
from bench.blocks import BLOCKS, NOTHING
from bench.cases import CASES, ours
from bench.cases.bare import raw
from bench.figures import NotMeasured, cpu, key_of, probed, rate, sound, spread, stall
from bench.measure import measure
from bench.plans import plan_of, targets_of
from bench.probes import PROBES
from bench.probes.compute import explained_anew
from bench.records import MODES, recorded, text_of
from bench.runner import Child, Plan, _stub, run
from bench.targets import TARGETS, Target, judge
from bench.world import World

CELL = {
    "calls": 100, "errors": 0, "error": None, "wall_s": 1.0, "cpu_ms": 0.2, "server_cpu_ms": 0.1, "calls_per_s": 100.0,
    "p50_ms": 1.0, "p99_ms": 2.0, "stall_ms": 3.0, "rss_mb": 90.0, "collections": 0, "longest_collection_ms": 0.0,
}  # fmt: skip


class AnyFigure(dict[str, float]):
    """The figures of a probe that has every figure."""

    def __missing__(self, name: str) -> float:
        return 7.0


def recorded_run() -> dict[str, Any]:
    """Return a run in which every cell and probe gave something."""
    plan = plan_of("full")
    rounds: dict[str, Any] = {key_of(*cell): [dict(CELL)] * plan.rounds for cell in plan.cells}
    rounds["raw@16"] = [CELL | {"rss_mb": 91.0}, CELL | {"rss_mb": 89.0}]
    rounds["raw@64"] = [CELL | {"cpu_ms": 0.4}]
    rounds |= {name: [AnyFigure()] for name in plan.probes}
    rounds["growth"] = rounds["growth_postgres"] = [AnyFigure(rows=[1_000, 1_000_000], bytes_per_run=2_000.0)]
    rounds["imports"] = [AnyFigure(llm_loads=[], bootstrap_loads=["aiohttp"], reference_loads=[])]
    rounds["fresh_process"] = [AnyFigure(replay_loads=["sqlalchemy"], hit_loads=[])]
    for name in ("stages", "stages_postgres"):
        rounds[name] = [AnyFigure(stages=1_000)]
    rounds["soak"] = [
        AnyFigure(
            calls=100_000, rows=100_000, errors=0, rss_mb=[[100, 50.0], [100_000, 60.0]], rss_swing=0.01
        )
    ]
    for name in ("prune", "prune_postgres", "prune_million"):
        rounds[name] = [AnyFigure(runs=20_000, rss_mb=[40.0, 41.0])]
    rounds["steps"] = [{"one step": 12.345}]
    return {
        "mode": "full",
        "facts": {
            "date": "2026-03-01", "cpu": "A CPU", "cores": 2, "kernel": "Linux 6.1", "python": "3.11.7",
            "lane": "default", "versions": {"litellm": "1.2.3"},
        },
        "flush": {"p50_ms": 0.2, "p99_ms": 0.4},
        "pace": {"rounds": plan.rounds, "seconds": plan.seconds},
        "rounds": rounds,
        "targets": [judge(target, rounds).as_row() for target in TARGETS],
    }  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_every_target_of_a_mode_is_made_of_what_the_mode_measures(mode: str):
    plan = plan_of(mode)
    measured = {key_of(*cell) for cell in plan.cells} | set(plan.probes)
    assert {target.name: target.figure.needs - measured for target in targets_of(mode)} == {
        target.name: frozenset() for target in targets_of(mode)
    }


def test_the_modes_grow_and_the_quick_one_leaves_out_what_takes_long_only():
    quick, more, full = (plan_of(mode) for mode in MODES)
    assert set(quick.cells) < set(more.cells) == set(full.cells)
    assert set(quick.probes) <= set(more.probes) < set(full.probes) == set(PROBES)
    left_out = {target.name.split(",")[0].split(":")[0] for target in TARGETS if target.full}
    assert left_out == {
        "a year's report over a million runs",
        "claim + finish at 1e6 rows x at 1e3",
        "prune a million runs",
        "soak of 100",
    }


def test_competitors_never_share_a_process_with_us_nor_a_router_with_anybody():
    homes = {name: case.home for name, case in CASES.items()}
    ours = {home for name, home in homes.items() if CASES[name].title.startswith(("ours", "replay", "hit"))}
    assert ours == {"ours"}
    assert len({homes[name] for name in ("sqlite", "acompletion", "router", "router_failover")}) == 4


def test_a_figure_is_that_of_its_best_round():
    rounds = {
        "a@1": [CELL | {"cpu_ms": 3.0, "calls_per_s": 10.0}, CELL | {"cpu_ms": 2.0, "calls_per_s": 9.0}]
    }
    assert (cpu("a", 1).of(rounds), rate("a", 1).of(rounds)) == (2.0, 10.0)
    assert ((cpu("a", 1) + cpu("a", 1)) / cpu("a", 1) * 10).of(rounds) == 20.0


def test_the_longest_stall_and_the_widest_spread_are_those_of_all_rounds():
    """A stall that one round of a second had is no noise: it may be a collection, or a checkpoint."""
    rounds = {"a@1": [CELL | {"stall_ms": 90.0, "p99_ms": 7.0}, CELL | {"stall_ms": 4.0, "p99_ms": 2.0}]}
    assert (stall("a", 1).of(rounds), spread("a", 1).of(rounds)) == (90.0, 7.0)


def test_limits_are_judged_from_their_side():
    rounds = {"a@1": [CELL | {"cpu_ms": 3.0, "calls_per_s": 10.0}]}
    assert judge(Target("t", cpu("a", 1), 3.0), rounds).verdict == "PASS"
    assert judge(Target("t", cpu("a", 1), 2.9), rounds).verdict == "FAIL"
    assert judge(Target("t", rate("a", 1), 10.0, at_least=True), rounds).verdict == "PASS"
    assert judge(Target("t", rate("a", 1), 10.1, at_least=True), rounds).verdict == "FAIL"


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({}, "a@1 was not measured"),
        ({"a@1": [CELL, {"fault": "Traceback\nOSError: no space"}]}, "a@1: OSError: no space"),
        (
            {"a@1": [CELL, CELL | {"errors": 2, "error": "LLMTimeout: late"}]},
            "a@1: 2 of 100 calls failed: LLMTimeout: late",
        ),
    ],
    ids=["missing", "faulty round", "failed calls"],
)
def test_what_was_not_measured_is_an_error_and_never_a_pass(found: dict[str, Any], why: str):
    with pytest.raises(NotMeasured):
        sound(found, "a@1")
    outcome = judge(Target("t", cpu("a", 1), 1e9), found)
    assert (outcome.verdict, outcome.measured, outcome.why) == ("ERROR", None, why)
    assert why in report.target_line(outcome.as_row())


def test_a_figure_that_an_earlier_bench_did_not_take_is_said_to_be_missing():
    outcome = judge(
        Target("t", probed("route", "anew_us") / cpu("raw", 1), 0.2), {"route": [{"route_us": 7.0}]}
    )
    assert (outcome.verdict, outcome.why) == ("ERROR", "route has no anew_us: an earlier bench ran it")


@pytest.mark.parametrize("wanted", [ServedFrom.REPLAY, ServedFrom.CACHE])
async def test_replays_and_hits_make_their_request_in_every_call(
    wanted: ServedFrom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: list[LLMRequest] = []
    make = ours.request

    def noted(number: int, **options: Any) -> LLMRequest:
        made.append(make(number, **options))
        return made[-1]

    monkeypatch.setattr(ours, "request", noted)
    world = World(stub_url="http://127.0.0.1:9", directory=str(tmp_path))
    stored = {"database_url": world.file("known"), "cache_enabled": True}
    async with ours.service(world, client=ScriptedClient(), warm=False, **stored) as llm:
        call = await ours._repeated(llm, wanted)
        before = len(made)
        for number in range(3):
            await call(number)
    assert len(made) - before == 3


async def test_a_route_made_anew_is_no_remembered_one(tmp_path: Path):
    world = World(stub_url="http://127.0.0.1:9", directory=str(tmp_path))
    async with ours.service(world, client=ScriptedClient(), warm=False, persist_runs=False) as llm:
        remembered = llm.explain(ours.request(1))
        assert explained_anew(llm, ours.request(1)) == remembered
        assert explained_anew(llm, ours.request(1)) == remembered
        kept = _route_of_short_prompts.cache_info()
        assert (kept.misses, kept.hits) == (1, 0)


def test_a_recorded_run_is_rendered_into_every_block():
    document = recorded_run()
    blocks = {name: make(document) for name, make in BLOCKS.items()}
    for target in TARGETS:
        assert target.name in blocks["bench"]
        assert target.name in "\n".join(map(report.target_line, document["targets"]))
    assert "1.2.3" in blocks["bench-conditions"]
    assert all(case.title in blocks["bench-cells"] for case in CASES.values())
    assert blocks["bench-cells"].splitlines()[0].endswith("| RSS MB |")
    assert blocks["bench-cells"].splitlines()[2].startswith("| raw aiohttp |")
    assert blocks["bench-cells"].splitlines()[2].endswith("| 91.0 |")
    assert "| ours, SQLite FULL, 64 in flight | 0.500 | 1.00 |" in blocks["bench-ratios"]
    assert "the best of 3 interleaved rounds of 2 s." in blocks["bench-conditions"]
    assert "| one step | 12.3 |" in blocks["bench-steps"]
    assert "| 256 KB | 0.200 | 0.200 | 7.00 | 7.00 |" in blocks["bench-prompts"]
    assert "| PostgreSQL | 1,000,000 | 7.00 | 7.00 |" in blocks["bench-growth"]
    assert "| `import app.bootstrap` | 7,000 | 7.00 | 7.00 | aiohttp |" in blocks["bench-imports"]
    assert "| one replay from SQLite | 7,000 | 7.00 | sqlalchemy |" in blocks["bench-fresh"]
    assert blocks["bench-prune"].count("| 20,000 | 7.00 | 7.00 | 41.0 |") == 3
    assert "| 1,000 | PostgreSQL | 7.00 | 7.00 | 7.00 | 7.00 |" in blocks["bench-stages"]
    assert "| 100,000 | 7 | 0 | 100,000 | 60.0 to 60.0 | +-1.0% |" in blocks["bench-soak"]
    # 10,000 calls/s x 0.2 ms = 2 busy cores, at 0.6 of each: 4; the server's half: 2
    assert "| 10,000 | 4 | 2 | 20,000 | 864 million | 1,728 GB |" in blocks["bench-sizing"]


def test_a_run_without_a_case_still_renders_what_it_has():
    document = recorded_run()
    document["rounds"] = {"raw@1": [CELL]}
    blocks = {name: make(document) for name, make in BLOCKS.items()}
    assert "| raw aiohttp | 0.200 | 1.00 / 2.00 | 100 |" in blocks["bench-cells"]
    assert (
        blocks["bench-growth"]
        == blocks["bench-steps"]
        == blocks["bench-soak"]
        == blocks["bench-prune"]
        == NOTHING
    )


def test_what_failed_is_told_in_the_tables_and_not_left_out():
    document = recorded_run()
    fault = [{"fault": "Traceback\nOSError: no space"}]
    document["rounds"] |= dict.fromkeys(("raw@1", "steps", "growth", "prune", "soak", "postgres@64"), fault)
    blocks = {name: make(document) for name, make in BLOCKS.items()}
    assert "| raw aiohttp | failed | failed | failed | 0.200 |" in blocks["bench-cells"]
    for name, said in (
        ("steps", "Failed: "),
        ("soak", "Failed: "),
        ("growth", "| failed | "),
        ("prune", "| failed | "),
    ):
        assert f"{said}{name}: OSError: no space" in blocks[f"bench-{name}"]
    assert "postgres@64: OSError: no space" in blocks["bench-sizing"]


def test_every_block_has_its_place_and_the_committed_ones_are_those_of_the_recorded_run():
    texts = [(report.ROOT / name).read_text() for name in report.DOCUMENTS]
    for name in BLOCKS:
        assert sum(f"<!-- {name}:begin -->" in text and f"<!-- {name}:end -->" in text for text in texts) == 1
    document = recorded()
    if document is None:
        assert not report.PLOT.exists()
        return
    assert [path.name for path in report.stale_documents(document)] == []
    assert report.PLOT.exists()


def test_probes_that_load_much_are_started_with_the_cases_and_used_in_their_turn(
    monkeypatch: pytest.MonkeyPatch,
):
    told: list[tuple[str, dict[str, Any]]] = []

    class Fake:
        def __init__(self, _world: World, log: Path) -> None:
            self.name = log.stem
            told.append((self.name, {"kind": "start"}))

        def order(self, **order: Any) -> None:
            told.append((self.name, order))

        def answer(self, _timeout_s: float) -> dict[str, Any]:
            return {}

        def settle_on(self, core: int | None) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(runner, "Child", Fake)
    with runner.Children(World(stub_url="u", directory="d")) as children:
        children.open(["raw"], ["route", "streams"])
        children.probe("streams")
        children.probe("route")
    assert told == [
        ("bare", {"kind": "start"}),
        ("bare", {"kind": "open", "names": ["raw"]}),
        ("probe-streams", {"kind": "start"}),
        ("probe-streams", {"kind": "load"}),
        ("probe-streams", {"kind": "probe", "name": "streams"}),
        ("probe-route", {"kind": "start"}),
        ("probe-route", {"kind": "probe", "name": "route"}),
    ]


async def test_a_cell_counts_calls_and_cpu_of_real_requests():
    with _stub() as url:
        async with raw(World(stub_url=url, directory="")) as call:
            cell = await measure(call, iter(range(10**6)), in_flight=3, seconds=0.05)
    assert cell.calls >= 3
    assert (cell.errors, cell.error) == (0, None)
    assert 0 < cell.cpu_ms <= 1000 * cell.wall_s
    assert 0 < cell.p50_ms <= cell.p99_ms


async def test_a_call_that_raises_is_counted_with_its_text():
    async def call(number: int) -> None:
        if number % 2:
            raise ValueError(f"number {number}")

    cell = await measure(call, iter(range(10**6)), in_flight=1, seconds=0.001)
    assert cell.errors == cell.calls // 2 > 0
    assert cell.error == "ValueError: number 1"


def test_a_child_says_what_went_wrong_and_a_dead_one_its_last_words(tmp_path: Path):
    child = Child(World(stub_url="http://127.0.0.1:9", directory=str(tmp_path)), tmp_path / "log")
    try:
        child.order(kind="open", names=["raw", "postgres"])
        assert child.answer(30) == {"opened": 1}
        child.order(kind="cell", name="raw", in_flight=1, seconds=0.01)
        refused = child.answer(30)
        assert refused["errors"] == refused["calls"] > 0
        assert "ClientConnectorError" in refused["error"]
        child.order(kind="cell", name="postgres", in_flight=1, seconds=0.01)
        assert "PostgreSQL was not started" in child.answer(30)["fault"]
        child.order(kind="probe", name="no such probe")
        assert "KeyError: 'no such probe'" in child.answer(30)["fault"]
        child.kill()
        child.order(kind="probe", name="route")
        assert "its process ended with -9" in child.answer(30)["fault"]
    finally:
        child.close()


def test_the_cells_of_a_run_are_told_and_nothing_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told: list[str] = []
    document = run(Plan([("raw", 1)], [], rounds=2, seconds=0.02), told.append)
    assert [set(cell) for cell in document["rounds"]["raw@1"]] == [set(CELL)] * 2
    assert document["pace"] == {"rounds": 2, "seconds": 0.02}
    assert any("round 2 of 2" in line for line in told)
    assert list(tmp_path.iterdir()) == []
    assert asdict(World(stub_url="u", directory="d")).keys() >= {"stub_url", "postgres_url"}


def test_a_run_is_written_with_one_round_a_line_and_read_back():
    document = {
        "mode": "quick",
        "rounds": {"raw@1": [CELL | {"cpu_ms": 0.123456789}]},
        "targets": [{"name": "t"}],
    }
    text = text_of(document)
    assert json.loads(text) == {**document, "rounds": {"raw@1": [CELL | {"cpu_ms": 0.12346}]}}
    assert len(text.splitlines()) == 11
