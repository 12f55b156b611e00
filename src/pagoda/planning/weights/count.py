"""What is counted: numbers of weights, by who reads them and when. Does not know families, nor bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Feed(NamedTuple):
    """The feed-forward part of a layer: what every token passes through, and all of its routed experts together."""

    always: int
    routed: int = 0


@dataclass(frozen=True)
class Experts:
    """So many weights in routed experts, over all layers; each layer has `num_experts`, a token goes to `per_token`."""

    num_weights: int = 0
    num_experts: int = 1
    per_token: int = 1

    def share_read(self, num_tokens: int) -> float:
        """The share of them that a step of so many tokens is expected to read, if every choice is as likely."""
        return 1 - (1 - self.per_token / self.num_experts) ** num_tokens


@dataclass(frozen=True)
class WeightCount:
    """The weights of a model.

    table: rows that are looked up by token or position, and read no other way. head: what logits are made with, which
    may be the table of tokens. layers: what every token passes through. encoder: what reads an encoder's input, once,
    with the projections that make keys and values of it. plain: those of layers and encoder that never become codes,
    such as vectors and what a family reads in its own way. fine: of those which do the ones that make keys and values
    in layers of their own.
    """

    table: int
    head: int
    layers: int
    experts: Experts = Experts()
    encoder: int = 0
    plain: int = 0
    fine: int = 0

    @property
    def total(self) -> int:
        return self.table + self.head + self.layers + self.experts.num_weights + self.encoder

    @property
    def active(self) -> int:
        """Those that one token passes through on its way to its logits."""
        return self.layers + self.head + round(self.experts.num_weights * self.experts.share_read(1))

    def read_by(self, num_tokens: int) -> int:
        """Those that a decode step of so many tokens reads; experts as many as can be expected."""
        return self.layers + self.head + round(self.experts.num_weights * self.experts.share_read(num_tokens))
