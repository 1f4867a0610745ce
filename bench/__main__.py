"""`python -m bench quick | bench | full` measures and judges; `probe` renews a part; `report` writes documents."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.alone import judged_alone, standing_alone, with_probe
from bench.figures import NotMeasured
from bench.plans import plan_of, targets_of
from bench.records import MODES, record, recorded
from bench.report import PLOT, ROOT, stale_documents, target_line
from bench.runner import Plan, run
from bench.tables import markdown, us
from bench.targets import judge

FAILED, STOPPED = 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments, the command line's by default, say; return 1 where a target failed or a document is stale."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for mode in MODES:
        commands.add_parser(mode, help=f"measure and judge; writes bench/results/{mode}.json")
    probe = commands.add_parser(
        "probe", help="measure probes alone and put them into the longest recorded run"
    )
    probe.add_argument(
        "names", nargs="+", choices=standing_alone(), metavar="NAME", help=", ".join(standing_alone())
    )
    commands.add_parser("steps", help="print the steps of one call in microseconds")
    report = commands.add_parser("report", help="write tables and plot from the longest recorded run")
    report.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is stale")
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # children are ended, directories removed
    work: Mapping[str, Callable[[], int]] = {
        **{mode: lambda mode=mode: _measure(mode) for mode in MODES},
        "probe": lambda: _probe(asked.names),
        "steps": _steps,
        "report": lambda: _report(check=asked.check),
    }
    try:
        return work[asked.command]()
    except KeyboardInterrupt:
        _say("stopped; nothing was recorded")
        return STOPPED


def _measure(mode: str) -> int:
    document = run(plan_of(mode), _say)
    outcomes = [judge(target, document["rounds"]).as_row() for target in targets_of(mode)]
    file = record({"mode": mode, **document, "targets": outcomes})
    for row in outcomes:
        print(target_line(row))
    flush = document["flush"]
    kept = sum(row["verdict"] == "PASS" for row in outcomes)
    print(
        f"{kept} of {len(outcomes)} targets kept in {document['took_s']:.0f} s; writing 4 KB to the disk took "
        f"{flush['p50_ms']:.2f} ms (p99 {flush['p99_ms']:.2f}); all figures: {file.relative_to(ROOT)}"
    )
    return 0 if kept == len(outcomes) and not _faults(document) else FAILED


def _faults(document: Mapping[str, Any]) -> bool:
    """Return whether anything could not be measured, wanted by a target or not."""
    return any(
        each.get("fault") or each.get("error") for rounds in document["rounds"].values() for each in rounds
    )


def _probe(names: Sequence[str]) -> int:
    """Measure each probe in a run of its own and record it at once; a failed one leaves what was recorded."""
    if recorded() is None:
        return _nothing()
    failed = False
    for name in dict.fromkeys(names):
        alone = run(Plan([], [name], rounds=0, seconds=0), _say)
        (found,) = alone["rounds"][name]
        if "fault" in found:
            failed = True
            continue
        document = recorded()
        if document is None:
            return _nothing()
        file = record(with_probe(document, alone, name))
        rows = judged_alone(alone["rounds"], name, alone["facts"]["date"])
        print(f"{name}: {json.dumps(found)}", *map(target_line, rows), sep="\n")
        _say(f"{name}: recorded in {file.relative_to(ROOT)}; `python -m bench report` shows it")
        failed |= any(row["verdict"] != "PASS" for row in rows)
    return FAILED if failed else 0


def _nothing() -> int:
    _say("nothing was recorded yet: make bench")
    return FAILED


def _steps() -> int:
    document = run(Plan([], ["steps"], rounds=0, seconds=0), _say)
    (found,) = document["rounds"]["steps"]
    if "fault" in found:
        return FAILED
    print(markdown(("step", "CPU us"), us(found)))
    return 0


def _report(*, check: bool) -> int:
    document = recorded()
    if document is None:
        return _nothing()
    stale = stale_documents(document)
    for path, text in stale.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        _say(f"{path.relative_to(ROOT)}: {'stale, run `python -m bench report`' if check else 'written'}")
    if check:
        return FAILED if stale else 0
    from bench.plot import draw  # noqa: PLC0415  # loads what draws

    try:
        draw(document, PLOT)
    except ModuleNotFoundError as missing:  # it is in the benchmark's own lock
        _say(f"{PLOT.relative_to(ROOT)}: not drawn: {missing}; `make bench` installs it")
        return FAILED
    except NotMeasured as missing:
        _say(f"{PLOT.relative_to(ROOT)}: not drawn: {missing}")
        return FAILED
    _say(f"{PLOT.relative_to(ROOT)}: written")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
