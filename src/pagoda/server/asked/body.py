"""Defines what the bodies of all APIs have in common."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from annotated_types import MaxLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from pagoda.server.asked.leniency import without_unknown

Item = TypeVar("Item")

MOST_ITEMS = 1 << 14
MOST_TOKENS = 1 << 20


class _FirstError(FailFast):
    """Tells only the first wrong item of a list: all bodies are checked on one thread. Unions want it hashable."""

    __hash__ = object.__hash__


def _check_size(value: Any) -> Any:
    """Before its entries are looked at, each of which could be an error."""
    if isinstance(value, dict) and len(value) > MOST_ITEMS:
        raise PydanticCustomError("too_long", "There are more than {most} entries; give fewer.", {"most": MOST_ITEMS})
    return value


Items = Annotated[list[Item], _FirstError(), MaxLen(MOST_ITEMS)]
TokenIds = Annotated[list[int], _FirstError(), MaxLen(MOST_TOKENS)]
SIZE_CHECK = BeforeValidator(_check_size)
Entries = Annotated[dict[str, Item], SIZE_CHECK]


class Body(BaseModel):
    """Values are taken as they are: no text for a number. Unknown fields are left out, or refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def prepare(cls, value: Any, info: ValidationInfo) -> Any:
        return without_unknown(cls, _check_size(value), info.context)
