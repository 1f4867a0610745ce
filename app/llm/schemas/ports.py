"""What the fitters of single types ask of the walk through the whole schema."""

from typing import Any, Protocol

from app.llm.schemas.dialects import Facts, Json


class Walk(Protocol):
    """A schema on its way into a dialect."""

    facts: Facts

    def node(self, schema: Any, path: str) -> Json:
        """Return a schema below, in the dialect."""
        ...

    def union(self, members: list[Any], path: str, annotations: Json, keyword: str = ...) -> Json:
        """Return a choice between schemas; without a keyword they have no place of their own."""
        ...

    def note(self, path: str, keyword: str, value: Any = ...) -> None:
        """Record what cannot be told."""
        ...
