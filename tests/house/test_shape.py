"""The rules of the house that a program can check: sizes, swallowed errors, the order of the door."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import app.llm
from tests.support.ledger import ROOT

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 50
FILES = sorted(path for room in ("app", "bench") for path in (ROOT / room).rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in FILES]


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function's body, without its docstring and its signature."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def _swallows(handler: ast.ExceptHandler) -> bool:
    """Return whether a handler drops whatever comes: a bare or general `except` that only passes."""
    general = handler.type is None or (
        isinstance(handler.type, ast.Name) and handler.type.id in {"Exception", "BaseException"}
    )
    return general and all(isinstance(step, ast.Pass | ast.Continue) for step in handler.body)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_file_is_a_room_and_not_a_warehouse(path: Path):
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    tree = ast.parse(text)
    long = {
        each.name: _code_lines(each) for each in _functions(tree) if _code_lines(each) > MAX_FUNCTION_LINES
    }
    assert long == {}
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    assert [f"line {handler.lineno}" for handler in handlers if _swallows(handler)] == []
    assert ast.get_docstring(tree), "the first line is the file's promise"


def test_no_file_is_named_after_nothing():
    banned = {"utils", "helpers", "common", "manager", "base_classes", "misc"}
    assert [path.name for path in FILES if path.stem in banned] == []


def test_the_door_is_sorted_and_every_name_is_there():
    assert list(app.llm.__all__) == sorted(app.llm.__all__)
    assert [name for name in app.llm.__all__ if not hasattr(app.llm, name)] == []


def test_pickle_is_used_nowhere():
    """Payload bytes are a versioned codec."""
    users = [
        path.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        and any(alias.name in {"pickle", "marshal", "shelve"} for alias in node.names)
    ]
    assert users == []
