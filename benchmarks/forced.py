"""A text that an engine is made to say, so that it can be asked how likely each of its tokens was."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

Note = TypeVar("Note")


@dataclass
class Forced(Generic[Note]):
    """The form of an output that only `tokens` have. Keeps what `note` makes of the logits of each and its token."""

    tokens: list[int]
    note: Callable[[torch.Tensor, int], Note]
    notes: list[Note] = field(default_factory=list)

    def new(self) -> Forced[Note]:
        return self

    @property
    def is_ready(self) -> bool:
        return True

    @property
    def is_done(self) -> bool:
        return len(self.notes) == len(self.tokens)

    def mask(self, logits: torch.Tensor) -> None:
        token = self.tokens[len(self.notes)]
        self.notes.append(self.note(logits, token))
        logits[:token] = logits[token + 1 :] = -math.inf

    def push(self, token: int) -> None: ...
