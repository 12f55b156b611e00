"""What may be generated next, as the engine sees it: ids of tokens, and no word of grammars.

A request that wants its output in some form has a `Constraint`. Each of its sequences has a `Matcher`, which depends on
the tokens generated so far alone, so it outlives a preemption.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Matcher(Protocol):
    """The form of one sequence."""

    @property
    def is_ready(self) -> bool:
        """Whether it is known what may follow the last token; `mask` and `is_done` wait for that.

        Waits a moment for it at most, and for the same token no second time.
        """

    def mask(self, logits: torch.Tensor) -> None:
        """Set what may not come next to -inf in `logits` [vocabulary]. Raises StructuredOutputError if it cannot."""

    def push(self, token: int) -> None:
        """`token` was generated."""

    @property
    def is_done(self) -> bool:
        """Whether the output is complete and nothing can follow."""


class Constraint(Protocol):
    """The form that a request asks for."""

    def new(self) -> Matcher:
        """A matcher for a sequence that has generated nothing yet."""
