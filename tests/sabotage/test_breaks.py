"""The breaks fit the code as it is; that tests notice them is shown by `make sabotage`."""

import ast
from functools import cache

import pytest

from tests.sabotage.breaks import BREAKS
from tests.sabotage.patch import Break
from tests.support.ledger import ROOT

INVARIANTS = {f"I{number}" for number in range(1, 21)}


@cache
def _text(file: str) -> str:
    return (ROOT / file).read_text()


@cache
def _tests(file: str) -> set[str]:
    tree = ast.parse(_text(file))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("broken", BREAKS, ids=[each.name for each in BREAKS])
def test_a_break_fits_its_file_and_changes_it(broken: Break):
    whole = _text(broken.file)
    changed = broken.applied(whole)  # raises unless the text occurs exactly once
    assert changed != whole
    ast.parse(changed)


def test_the_tests_that_a_break_names_are_there():
    named = {test.partition("[")[0].partition("::")[::2] for each in BREAKS for test in each.tests}
    assert sorted((file, test) for file, test in named if test not in _tests(file)) == []
    assert [each.name for each in BREAKS if not each.tests] == []


def test_every_invariant_is_broken_once_at_least():
    assert {each.promise for each in BREAKS} >= INVARIANTS


def test_names_are_unique():
    names = [each.name for each in BREAKS]
    assert len(names) == len(set(names))


def test_a_break_finds_its_text_however_it_is_laid_out():
    broken = Break("name", "I1", "file.py", "call(one, two[0]) + 3", "call()", ())
    assert broken.applied("x = call(one, two[0]) + 3\n") == "x = call()\n"
    assert broken.applied("x = call(\n    one,\n    two[0],\n) + 3\n") == "x = call()\n"
    assert broken.occurrences("call(one, two[0]) + 30") == 0
    assert broken.occurrences("recall(one, two[0]) + 3") == 0
    with pytest.raises(LookupError, match="occurs 2 times"):
        broken.applied("call(one, two[0]) + 3; call(one, two[0]) + 3")
