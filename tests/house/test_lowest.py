"""`make test-lowest` tests what pyproject.toml promises: each stated floor is what requirements/lowest.txt installs."""

import re
import tomllib

from tests.support.ledger import ROOT

PIN = re.compile(r"^([a-z0-9-]+)==([^ ;]+)", re.MULTILINE)
REQUIREMENT = re.compile(r"([a-z0-9-]+)(?:\[\w+\])?[=>]=([0-9.]+)")


def release(version: str) -> tuple[int, ...]:
    numbers = [int(number) for number in version.split(".") if number.isdigit()]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def test_each_floor_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    required = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["crypto"],
        *project["project"]["optional-dependencies"]["metrics"],
        *project["dependency-groups"]["test"],
    ]
    lowest: dict[str, tuple[int, ...]] = {}
    for name, version in PIN.findall((ROOT / "requirements/lowest.txt").read_text()):
        lowest[name] = min(lowest.get(name, release(version)), release(version))  # one for each Python
    floors = {}
    for line in required:
        stated = REQUIREMENT.match(line)
        assert stated is not None, line
        floors[stated[1]] = release(stated[2])
    assert {name: lowest.get(name) for name in floors} == floors
