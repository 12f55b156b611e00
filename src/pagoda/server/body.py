"""What the bodies of all APIs have in common."""

from __future__ import annotations

from typing import Annotated, TypeVar

from annotated_types import MaxLen
from pydantic import BaseModel, ConfigDict, FailFast

Item = TypeVar("Item")

MOST_ITEMS = 1 << 14
MOST_TOKENS = 1 << 20


class _FirstError(FailFast):
    """Of a list only the first wrong item is told: all bodies are checked on one thread. Unions want it hashable."""

    __hash__ = object.__hash__


Items = Annotated[list[Item], _FirstError(), MaxLen(MOST_ITEMS)]
TokenIds = Annotated[list[int], _FirstError(), MaxLen(MOST_TOKENS)]


class Body(BaseModel):
    """Values are taken as they are: no text for a number, no unknown field."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
