"""What each setting means: the string below its field, read from the source when somebody wants to know.

Pydantic would read it for every program that imports the package, which took a sixth of that import.
"""

import ast
import inspect
from collections.abc import Iterator, Mapping
from itertools import pairwise

from app.llm.fields import Fields


def meanings(settings: type[Fields]) -> Mapping[str, str]:
    """Return the meaning of each field by its name; a field that has none is left out."""
    found = {name: field.description for name, field in settings.model_fields.items() if field.description}
    for each in reversed(settings.__mro__):
        if issubclass(each, Fields):
            found |= _below_fields(each)
    return found


def _below_fields(kind: type[Fields]) -> Iterator[tuple[str, str]]:
    module = inspect.getmodule(kind)
    if module is None:
        return
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef) or node.name != kind.__name__:
            continue
        for pair in pairwise(node.body):
            match pair:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str() as text)),
                ):
                    yield name, inspect.cleandoc(text)
                case _:
                    pass
