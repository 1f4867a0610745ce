# ruff: noqa: FBT003  # values of a type, one after another
"""A corpus of types as people write them with Pydantic, each with JSON values that it accepts."""

import datetime as dt
import decimal
import enum
import ipaddress
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import (
    AnyUrl,
    AwareDatetime,
    BaseModel,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PositiveInt,
    RootModel,
    SecretStr,
    StringConstraints,
    Tag,
    TypeAdapter,
    WithJsonSchema,
    create_model,
)
from typing_extensions import NotRequired, TypeAliasType, TypedDict  # noqa: UP035  # pydantic wants these

T = TypeVar("T")
CORPUS: dict[str, tuple[Any, tuple[Any, ...]]] = {}
"""Name -> a type, and values of it."""


def _holding(name: str, kind: Any, *values: Any) -> None:
    """Add a model with one field of this type."""
    CORPUS[name] = create_model(f"With_{name}", value=(kind, ...)), tuple({"value": each} for each in values)


def _case(name: str, kind: Any, *values: Any) -> None:
    CORPUS[name] = kind, values


def schema_of(name: str) -> dict[str, Any]:
    return TypeAdapter(CORPUS[name][0]).json_schema()


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


class Address(BaseModel):
    """Where somebody lives."""

    street: str
    city: str = Field(description="A town", examples=["Oslo"])


class Person(BaseModel):
    model_config = ConfigDict(title="A person")
    name: str
    home: Address
    work: Address | None = None


class Tree(BaseModel):
    value: int
    children: "list[Tree]"


class Chain(BaseModel):
    value: int
    next: "Chain | None" = None


class Loop(BaseModel):
    value: int
    next: "Loop | None"


class Employee(BaseModel):
    name: str
    team: "Team"


class Team(BaseModel):
    title: str
    members: list[Employee]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str]


class Add(BaseModel):
    op: Literal["add"]
    left: "Expression"
    right: "Expression"


class Number(BaseModel):
    op: Literal["number"]
    value: float


Expression = Annotated[Add | Number, Field(discriminator="op")]
Add.model_rebuild()


class Page(BaseModel, Generic[T]):
    items: list[T]
    total: int


class Pair(BaseModel, Generic[T]):
    left: T
    right: "Pair[T] | None" = None


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int
    b: str = "b"


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class OpenOfInts(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int]
    a: str


class Aliased(BaseModel):
    first: str = Field(alias="firstName")
    path: str = Field(alias="a/b~c")
    odd: int = Field(alias="$ref")


class Described(BaseModel):
    """A model whose every part is described."""

    place: Address = Field(description="Where it was")
    colour: Colour = Field(description="How it looked", default=Colour.RED)
    either: Cat | Dog = Field(description="Who did it")


class NamedLikeKeywords(BaseModel):
    type: str
    properties: dict[str, int]
    required: list[str]
    enum: int
    title: str
    description: str | None


class Empty(BaseModel):
    pass


class Money(NamedTuple):
    amount: int
    currency: str


@dataclass
class Point:
    x: float
    y: float = 0.0


class Film(TypedDict):
    title: str
    year: NotRequired[int]


class Names(RootModel[list[str]]):
    pass


class Scores(RootModel[dict[str, Annotated[int, Field(ge=0)]]]):
    pass


class Deep(BaseModel):
    a: "Deeper"


class Deeper(BaseModel):
    b: "list[dict[str, Deepest]]"


class Deepest(BaseModel):
    c: tuple[Address, ...] | None


Nested = TypeAliasType("Nested", "dict[str, Nested] | list[Nested] | int")  # type: ignore[misc]


def _kind(value: Any) -> str:
    return "text" if isinstance(value, str) else "number"


ADDRESS = {"street": "Kirkegata 1", "city": "Oslo"}
ADD = {"op": "add", "left": {"op": "number", "value": 1}, "right": {"op": "number", "value": 2.5}}
LEAF = {"value": 2, "children": []}
CHAIN = {"value": 1, "next": {"value": 2, "next": {"value": 3, "next": {"value": 4}}}}
TEAM = {"title": "T", "members": [{"name": "A", "team": {"title": "U", "members": []}}]}
FIELDS_200: dict[str, Any] = {
    f"field_{n}": (int if n % 2 else str | None, ... if n % 4 else None) for n in range(200)
}
TOGETHER = Annotated[Annotated[str, Tag("text")] | Annotated[int, Tag("number")], Discriminator(_kind)]

_case("flat", Address, ADDRESS)
_case("nested", Person, {"name": "A", "home": ADDRESS, "work": None}, {"name": "A", "home": ADDRESS})
_case("tree", Tree, LEAF, {"value": 1, "children": [LEAF, {"value": 3, "children": [LEAF]}]})
_case("chain", Chain, CHAIN)
_case("loop", Loop, {"value": 1, "next": {"value": 2, "next": None}})
_case("each in the other", Team, TEAM)
_case("expression", Expression, ADD, {**ADD, "left": ADD})
_case("generic", Page[Person], {"items": [{"name": "A", "home": ADDRESS}], "total": 1})
_case("generic in generic", Page[Page[int]], {"items": [{"items": [1], "total": 1}], "total": 1})
_case("recursive generic", Pair[Pair[int]], {"left": {"left": 1}, "right": {"left": {"left": 2}}})
_case("closed", Closed, {"a": 1}, {"a": 1, "b": "c"})
_case("open", Open, {"a": 1}, {"a": 1, "more": [None]})
_case("open of one type", OpenOfInts, {"a": "x", "more": 1})
_case("aliases", Aliased, {"firstName": "A", "a/b~c": "d", "$ref": 1})
_case("described", Described, {"place": ADDRESS, "either": {"kind": "cat"}})
_case("fields named like keywords", NamedLikeKeywords, {
    "type": "t", "properties": {"a": 1}, "required": ["b"], "enum": 1, "title": "t", "description": None,
})  # fmt: skip
_case("empty", Empty, {})
_case("200 fields", create_model("Wide", **FIELDS_200), {
    f"field_{n}": n if n % 2 else f"{n}" for n in range(200)
})  # fmt: skip
_case("deep", Deep, {"a": {"b": [{"k": {"c": [ADDRESS]}}, {"k": {"c": None}}]}})
_case("dataclass", Point, {"x": 1, "y": 2.5}, {"x": 0})
_case("typed dict", Film, {"title": "M"}, {"title": "M", "year": 1931})
_case("root list", Names, ["a", "b"], [])
_case("root map", Scores, {"a": 1})
_case("root union", RootModel[int | str | None], 1, "a", None)
_case("list of models", list[Address], [ADDRESS], [])
_case("recursive alias", Nested, 1, [1, [2]], {"a": [{"b": 3}]})
_case("any JSON", JsonValue, 1, None, [[[1]]], {"a": [{}]})

_holding("integer", int, 1, -5)
_holding("number", float, 1.5, 2)
_holding("text", str, "", "ü")
_holding("truth", bool, True, False)
_holding("nothing", None, None)
_holding("anything", Any, 1, "a", None, [[[]]], {"a": {"b": [1]}})
_holding("optional", int | None, 1, None)
_holding("optional anything", Any | None, 1, None, [[[1]]])
_holding("default", Annotated[int, Field(default=3)], 3)
_holding("union", int | str | list[int], 1, "a", [1])
_holding("union of models", Cat | Dog, {"kind": "cat"}, {"kind": "dog", "tricks": []})
_holding(
    "discriminated union",
    Annotated[Cat | Dog, Field(discriminator="kind")],
    {"kind": "dog", "tricks": ["sit"]},
)
_holding("union by function", TOGETHER, "a", 1)
_holding("nested unions", (int | None) | (str | list[bool | None]), None, [True, None])
_holding("enum of texts", Colour, "red")
_holding("enum of integers", Size, 1, 2)
_holding("enum of both", Mixed, 1, "two")
_holding("enum of one", Literal["only"], "only")
_holding("literals of types", Literal["a", 1, True] | None, "a", 1, True, None)
_holding("literal true", Literal[True], True)
_holding("literal with an empty text", Literal["", "a"], "", "a")
_holding("optional enum", Colour | None, "blue", None)
_holding("bounded integer", Annotated[int, Field(ge=0, lt=10)], 0, 9)
_holding("positive integer", PositiveInt, 1)
_holding("large integer", Annotated[int, Field(ge=0, le=2**62)], 2**62)
_holding("multiple", Annotated[int, Field(multiple_of=5)], 10)
_holding("bounded number", Annotated[float, Field(gt=0, le=1)], 0.5, 1)
_holding("decimal", decimal.Decimal, "1.50", 2)
_holding(
    "bounded decimal", Annotated[decimal.Decimal, Field(max_digits=5, decimal_places=2, ge=0)], "1.50", 2
)
_holding("bounded text", Annotated[str, Field(min_length=2, max_length=4)], "abc")
_holding("long text", Annotated[str, Field(max_length=100_000)], "a" * 3000)
_holding("plain pattern", Annotated[str, Field(pattern=r"^[A-Z]{2}-[0-9]+$")], "NO-12")
_holding("pattern with a class", Annotated[str, Field(pattern=r"^\d+\s?kg$")], "12 kg")
_holding("open pattern", Annotated[str, StringConstraints(pattern="[a-z]", min_length=1)], "A1b")
_holding("date", dt.date, "2026-01-31")
_holding("time", dt.time, "12:30:00Z")
_holding("moment", dt.datetime, "2026-01-31T12:30:00Z")
_holding("moment with a zone", AwareDatetime, "2026-01-31T12:30:00+01:00")
_holding("duration", dt.timedelta, "PT3S")
_holding("uuid", uuid.UUID, "12345678-1234-5678-1234-567812345678")
_holding("address", ipaddress.IPv4Address, "127.0.0.1")
_holding("url", AnyUrl, "https://example.org/a")
_holding("path", Path, "a/b")
_holding("secret", SecretStr, "s")
_holding("bytes", bytes, "abc")
_holding("size", ByteSize, 1024, "1KB")
_holding("mail", Annotated[str, WithJsonSchema({"type": "string", "format": "email"})], "a@example.org")
_holding("list", list[int], [], [1, 2])
_holding("list of anything", list[Any], [1, "a", None, [[1]]])
_holding("bounded list", Annotated[list[int], Field(min_length=1, max_length=3)], [1])
_holding("long list", Annotated[list[int], Field(max_length=5000)], [1] * 2500)
_holding("set", set[str], ["a", "b"])
_holding("pair", tuple[int, str], [1, "a"])
_holding("pair of one type", tuple[int, int], [1, 2])
_holding("open tuple", tuple[int, ...], [], [1, 2, 3])
_holding("empty tuple", tuple[()], [])
_holding("named tuple", Money, [1, "NOK"])
_holding("tuple of models", tuple[Address, Cat | None], [ADDRESS, None])
_holding("list of lists", list[list[list[float]]], [[[1.5]]])
_holding("map", dict[str, int], {}, {"a": 1})
_holding("map of models", dict[str, Address], {"a": ADDRESS})
_holding("map of anything", dict[str, Any], {"a": [[1]]})
_holding("map with listed keys", dict[Colour, int], {"red": 1})
_holding("map with a pattern", dict[Annotated[str, Field(pattern="^a")], int], {"ab": 1})
_holding("map with integer keys", dict[int, str], {"1": "a"})
_holding("bounded map", Annotated[dict[str, int], Field(min_length=1, max_length=2)], {"a": 1})
_holding("map of maps", dict[str, dict[str, list[int | None]]], {"a": {"b": [1, None]}})
