"""A plugin of pytest, so that tests of a user's own are answered from a file: `@pytest.mark.signalbox_cassette`.

pytest finds it by its entry point and alone imports it. Nothing else of this package is loaded before a marked test
runs, so that tests which need none of it start as fast as before, and what measures coverage begins first.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

MARKER = "signalbox_cassette"
OPTION = "--signalbox-mode"
MODES = ("live", "record", "replay")
FOLDER, SUFFIX = "cassettes", ".jsonl"
_OWNERS = pytest.StashKey[dict[Path, str]]()
"""Which test records each file: the first one that was collected, so that all workers of pytest-xdist agree."""
_UNSAFE = re.compile(r"[^\w.=,+\[\]-]+", re.ASCII)
_LONGEST = 120
"""Characters of a file's name."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that says who answers."""
    parser.getgroup("signalbox").addoption(
        OPTION,
        choices=MODES,
        default="replay",
        help=f"Who answers the calls to language models of tests with the marker {MARKER}: `replay` (the default) their "
        "cassette, without a socket; `record` providers, and the cassette is written anew; `live` providers.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker; refuse to record where nobody reviews what was recorded.

    Raises:
        UsageError: CI records.
    """
    config.addinivalue_line(
        "markers",
        f"{MARKER}(name=None): answer calls to language models from {FOLDER}/NAME{SUFFIX} beside the test; without a "
        "name from a file that is named after the test",
    )
    if config.getoption(OPTION) == "record" and os.environ.get("CI", "").lower() not in {"", "0", "false"}:
        raise pytest.UsageError(f"{OPTION}=record: CI replays what was recorded and reviewed elsewhere")


@pytest.hookimpl(trylast=True)  # once others have deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note which test records which file."""
    owners = config.stash.setdefault(_OWNERS, {})
    for item in items:
        if (marker := item.get_closest_marker(MARKER)) is not None:
            owners.setdefault(_file(item, marker), item.nodeid)


@pytest.fixture(autouse=True)
def signalbox_cassette(request: pytest.FixtureRequest) -> Iterator[Path | None]:
    """The cassette of a marked test, else None.

    Services that are built while the test runs are answered from it, whatever settings they are given. LLM_MODE and
    LLM_CASSETTE say the same to child processes. LLM_DATABASE_URL names a ledger of the test's own: another one might
    have answers, which would then be missing from the cassette.
    """
    marker = request.node.get_closest_marker(MARKER)
    if marker is None:
        yield None
        return
    from app.llm.cassettes.held import cassette  # noqa: PLC0415  # as the first lines of this file say
    from app.llm.settings import LLMMode  # noqa: PLC0415

    path, mode = _file(request.node, marker), LLMMode(request.config.getoption(OPTION))
    if mode is LLMMode.RECORD:
        _refuse_sharing(request, path)
    folder: Path = request.getfixturevalue("tmp_path")
    with pytest.MonkeyPatch.context() as patch, cassette(path, mode):
        patch.setenv("LLM_MODE", mode.value)
        patch.setenv("LLM_CASSETTE", str(path))
        patch.setenv("LLM_DATABASE_URL", f"sqlite+aiosqlite:///{folder / 'signalbox.db'}")
        yield path


def _refuse_sharing(request: pytest.FixtureRequest, path: Path) -> None:
    """Fail the second test that would record into one file: of the first one's calls none would stay."""
    owner = request.config.stash[_OWNERS][path]
    if owner != request.node.nodeid:
        pytest.fail(f"{path} is recorded by {owner}: give each test a cassette of its own", pytrace=False)


def _file(node: pytest.Item, marker: pytest.Mark) -> Path:
    """Return the file of a test."""
    name = marker.args[0] if marker.args else marker.kwargs.get("name")
    if name is None:
        test = ".".join(node.nodeid.split("::")[1:])
        name = f"{node.path.stem}/{_safe(test)}"
    return node.path.parent / FOLDER / f"{name}{SUFFIX}"


def _safe(test: str) -> str:
    """Return a name for a file; where it cannot be the test's own, a hash keeps it apart from others."""
    safe = _UNSAFE.sub("-", test)
    if safe == test and len(safe) <= _LONGEST:
        return safe
    return f"{safe[:_LONGEST]}-{hashlib.sha256(test.encode()).hexdigest()[:8]}"
