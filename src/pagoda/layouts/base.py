"""The interface of a layout: which numbers a token leaves in one layer, and how much of a prefix can be resumed.

Knows planes and counts. Does not know how numbers become bytes (formats), which layers go together (spec), or that
pages exist beyond the number of tokens they hold.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Self


class Axis(Enum):
    """The axis over which attention sums the numbers of a plane."""

    CHANNEL = "channel"  # keys: a score sums over the channels of one token
    TOKEN = "token"  # values: an output sums over the tokens of one channel


@dataclass(frozen=True)
class Plane:
    """One kind of number a token leaves in a layer: `num_heads` rows of `width` channels.

    The first `value_width` channels of a key may be the value too, which then has no plane of its own.
    """

    name: str
    num_heads: int
    width: int
    reduced: Axis
    value_width: int = 0

    @property
    def elements_per_token(self) -> int:
        return self.num_heads * self.width


class Layout(ABC):
    """What one layer keeps for a token. Implementations are frozen data."""

    @property
    @abstractmethod
    def planes(self) -> tuple[Plane, ...]:
        """The planes of one layer, in the order in which they lie inside a page."""

    @classmethod
    @abstractmethod
    def examples(cls) -> Mapping[str, Self]:
        """Small ones of every shape that formats and kernels may find hard, by name, for tests and trials."""

    @abstractmethod
    def resumable_tokens(self, num_matched_tokens: int) -> int:
        """How many of `num_matched_tokens` leading tokens a new sequence can take over without computing them."""

    def part(self, num_devices: int) -> Self:  # noqa: ARG002
        """What each of so many devices keeps that divide the heads of the model: all, where every head reads it."""
        return self

    @property
    def elements_per_token(self) -> int:
        return sum(plane.elements_per_token for plane in self.planes)
