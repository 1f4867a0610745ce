"""What models are made of, and what becomes of each part on its way to a provider, for the table in the documentation."""

import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from app.llm.schemas.dialects import SchemaDialect
from app.llm.schemas.fitting import Misfit, fit

_WORDS = {
    "$ref": "a cycle is cut off after two rounds",
    "required": "the property that closes the cycle may be left out",
    "type": "values nested less deeply",
}
_ANNOTATIONS = frozenset({"title", "default", "description", "discriminator"})


class _Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class _Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class _Part(BaseModel):
    name: str


class _Plain(BaseModel):
    text: str
    whole: int
    number: float
    truth: bool


class _Cat(BaseModel):
    kind: Literal["cat"]


class _Dog(BaseModel):
    kind: Literal["dog"]


class _Chain(BaseModel):
    next: "_Chain | None" = None


class _Tree(BaseModel):
    children: "list[_Tree]"


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


FEATURES: Mapping[str, Any] = {
    "`str`, `int`, `float`, `bool`": _Plain,
    "nested model": _Part,
    "model, `extra='forbid'`": _Closed,
    "model, `extra='allow'`": _Open,
    "recursion through an optional field": _Chain,
    "recursion through a required field": _Tree,
    "`X | None`": int | None,
    "union": int | str,
    "discriminated union": Annotated[_Cat | _Dog, Field(discriminator="kind")],
    "enum or literal of texts": _Colour,
    "literal with an empty text": Literal["", "a"],
    "enum or literal of integers": _Size,
    "literal `True`": Literal[True],
    "`Any`": Any,
    "integer with bounds": Annotated[int, Field(gt=0, le=9)],
    "number with bounds": Annotated[float, Field(ge=0, le=9)],
    "number with exclusive bounds": Annotated[float, Field(gt=0)],
    "`multiple_of`": Annotated[int, Field(multiple_of=5)],
    "`Decimal`": decimal.Decimal,
    "text with a length": Annotated[str, Field(min_length=1, max_length=99)],
    "text of 2,000 characters or more": Annotated[str, Field(max_length=2000)],
    "plain pattern, `^[A-Z]{2}$`": Annotated[str, Field(pattern="^[A-Z]{2}$")],
    "other pattern, `\\d+`": Annotated[str, Field(pattern=r"\d+")],
    "`date`": dt.date,
    "`datetime`": dt.datetime,
    "`UUID`": uuid.UUID,
    "`timedelta`, URL, address, mail": dt.timedelta,
    "list with a length": Annotated[list[int], Field(min_length=1, max_length=9)],
    "set": set[str],
    "tuple": tuple[int, str],
    "`dict[str, int]`": dict[str, int],
    "`dict[str, Any]`": dict[str, Any],
    "`dict` with listed keys": dict[_Colour, Any],
    "`dict` with a length": Annotated[dict[str, Any], Field(min_length=1)],
}
"""In words -> a type of a field."""


def outcome(feature: str, dialect: SchemaDialect) -> str:
    """Return what becomes of a field of this type: nothing, other words for the same, or what goes."""
    model: type[BaseModel] = create_model("Model", value=(FEATURES[feature], ...))
    schema = model.model_json_schema()
    fitted = fit(schema, dialect)
    if not fitted.misfits:
        same = _bare(fitted.schema) == _bare(schema)
        return "as it is" if same else "in other words"
    return ", ".join(dict.fromkeys(_told(misfit) for misfit in fitted.misfits))


def _told(misfit: Misfit) -> str:
    return _WORDS.get(misfit.keyword, f"without `{misfit.keyword}`")


def _bare(schema: Any, *, names: bool = False) -> Any:
    """Return a schema without its annotations; the keys of `properties` are names."""
    if isinstance(schema, list):
        return [_bare(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _bare(value, names=key in {"properties", "$defs"} and not names)
        for key, value in schema.items()
        if names or key not in _ANNOTATIONS
    }
