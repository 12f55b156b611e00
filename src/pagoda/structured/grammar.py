"""A compiled grammar as the engine sees it: what each of its sequences may go on with, as masks over logits."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import TimeoutError as NotYetError
from dataclasses import dataclass
from itertools import count
from time import monotonic

import numpy as np
import torch

from pagoda.errors import StructuredOutputError
from pagoda.structured.lane import Asked, Lane, Step
from pagoda.structured.source import Source, one_line

# What may come next is usually known within a fraction of a millisecond; a step of the engine takes longer.
USUAL_SECONDS = 0.02


@dataclass(frozen=True, eq=False)
class Grammar:
    """The `Constraint` of a request. Its outputs begin with what `first` allows."""

    source: Source
    first: Step
    lane: Lane
    penalties: torch.Tensor
    numbers: count[int]
    on_failure: Callable[[], None]

    def new(self) -> GrammarMatcher:
        return GrammarMatcher(self)


class GrammarMatcher:
    """Where one sequence stands in its grammar: a `Matcher`."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._number = next(grammar.numbers)
        self._tokens: list[int] = []
        self._asked: Asked | None = None
        self._usual_until = 0.0

    def mask(self, logits: torch.Tensor) -> None:
        step = self._step
        if step.problem:
            raise StructuredOutputError(
                f"The output cannot be held to its grammar any longer: {one_line(step.problem)}"
            )
        mask = np.frombuffer(step.mask, dtype=np.uint8)
        # Ten times faster than to fill by a mask of booleans.
        penalties = self._grammar.penalties.index_select(0, torch.from_numpy(mask.astype(np.int32)))
        logits += penalties.flatten()[: len(logits)]

    def push(self, token: int) -> None:
        self._tokens.append(token)
        grammar, tokens = self._grammar, self._tokens
        self._asked = Asked(self._number, grammar.source, tokens, len(tokens), grammar.on_failure)
        self._usual_until = monotonic() + USUAL_SECONDS
        grammar.lane.ask(self._asked)

    @property
    def is_ready(self) -> bool:
        if self._asked is None:
            return True
        try:
            self._asked.answer.result(timeout=max(0.0, self._usual_until - monotonic()))
        except NotYetError:
            return False
        return True

    @property
    def is_done(self) -> bool:
        return self._step.is_done

    @property
    def _step(self) -> Step:
        return self._grammar.first if self._asked is None else self._asked.answer.result()


def penalties_of_bytes() -> torch.Tensor:
    """What each byte of a mask adds to eight logits, fp32 [256, 8]: 0 where its bit is set, else -inf."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return torch.where(torch.from_numpy(bits).bool(), 0.0, -torch.inf)
