"""What pages of a format do to the predictions of a model: its own text continued, and things recalled at a distance.

Everything is one prompt through pages of its own (`Passage`), next to the same one through exact pages.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pagoda.engine.format_fit import divergences
from pagoda.models.passage import Passage

# Tokens of a window that do not count, as they have little to go by; and logits at a time.
UNCOUNTED_TOKENS = 256
MOST_LOGITS = 1 << 27
# What is recalled: five digits told in a sentence, and a stretch of text that comes again.
NEEDLE = " The number of the harbour is{}."
QUESTION = " The number of the harbour is"
NUM_DIGITS = 5
STRETCH_TOKENS, CUE_TOKENS = 24, 8


@dataclass
class WindowResult:
    """Of the predictions of one window: mean loss in nats, divergences, and how many first choices are the same."""

    loss: float
    divergences: torch.Tensor
    same: int


@dataclass
class TextResult:
    """Of one format over one text, window by window, and those of exact pages."""

    windows: list[WindowResult] = field(default_factory=list)
    exact: list[float] = field(default_factory=list)

    @property
    def perplexity(self) -> float:
        return math.exp(statistics.mean(each.loss for each in self.windows))

    @property
    def change(self) -> float:
        """How much larger perplexity is, as a share."""
        return math.expm1(statistics.mean(self._differences()))

    @property
    def error(self) -> float | None:
        """The standard error of the mean difference, in nats; None of one window."""
        differences = self._differences()
        return statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None

    @property
    def mean_divergence(self) -> float:
        return float(self._divergences().mean())

    @property
    def p99_divergence(self) -> float:
        return float(self._divergences().quantile(0.99))

    @property
    def agreement(self) -> float:
        """The share of predictions whose first choice is that of exact pages."""
        return sum(each.same for each in self.windows) / len(self._divergences())

    def _differences(self) -> list[float]:
        return [each.loss - exact for each, exact in zip(self.windows, self.exact, strict=True)]

    def _divergences(self) -> torch.Tensor:
        return torch.cat([each.divergences for each in self.windows])


def compare_window(
    exact: Passage, passages: Sequence[Passage], token_ids: torch.Tensor, vocab_size: int
) -> tuple[list[WindowResult], float]:
    """A `WindowResult` of each of `passages`, and the loss of the exact one."""
    first = min(UNCOUNTED_TOKENS, len(token_ids) // 4)
    stride = max(1, -(-(len(token_ids) - first) * vocab_size // MOST_LOGITS))
    rows = torch.arange(first, len(token_ids) - 1, stride)
    wanted = token_ids[rows + 1]
    expected = exact.logits(token_ids, rows)
    results = []
    for passage in passages:
        found = passage.logits(token_ids, rows)
        same = int((found.argmax(dim=-1) == expected.argmax(dim=-1)).sum())
        results.append(WindowResult(_loss(found, wanted), divergences(expected, found), same))
    return results, _loss(expected, wanted)


def _loss(logits: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits, wanted))


@dataclass(frozen=True)
class Probe:
    """A prompt whose tokens from `first_answer` on should be foreseen, each from those before it."""

    token_ids: torch.Tensor
    first_answer: int

    def foreseen(self, passage: Passage) -> float:
        """The share of them that are the model's first choice."""
        rows = torch.arange(self.first_answer - 1, len(self.token_ids) - 1)
        chosen = passage.logits(self.token_ids, rows).argmax(dim=-1)
        return float((chosen == self.token_ids[rows + 1]).float().mean())


class Probes:
    """Makes probes of text: `filler` are its tokens, of which there are more than the longest distance."""

    KINDS = ("needle", "copy")

    def __init__(self, tokenizer: Any, filler: torch.Tensor) -> None:
        self._tokenizer, self._filler = tokenizer, filler

    def make(self, kind: str, distance: int, count: int) -> Iterator[Probe]:
        """Always the same: what is asked for was told `distance` tokens ago."""
        generator = random.Random(f"{kind} {distance}")
        for _ in range(count):
            yield (self._needle if kind == "needle" else self._copy)(distance, generator)

    def _needle(self, distance: int, generator: random.Random) -> Probe:
        digits = " " + "".join(generator.choice("123456789") for _ in range(NUM_DIGITS))
        told, asked = (self._tokens(text) for text in (NEEDLE.format(digits), QUESTION))
        answered = self._tokens(QUESTION + digits)
        question = int((answered[: len(asked)] == asked).long().cumprod(0).sum())  # digits may join the last word
        filler = self._stretch(distance, generator)
        return Probe(torch.cat((told, filler, answered)), len(told) + len(filler) + question)

    def _copy(self, distance: int, generator: random.Random) -> Probe:
        stretch, filler = self._stretch(STRETCH_TOKENS, generator), self._stretch(distance, generator)
        return Probe(torch.cat((stretch, filler, stretch)), STRETCH_TOKENS + distance + CUE_TOKENS)

    def _stretch(self, length: int, generator: random.Random) -> torch.Tensor:
        first = generator.randrange(len(self._filler) - length)
        return self._filler[first : first + length]

    def _tokens(self, text: str) -> torch.Tensor:
        return torch.tensor(self._tokenizer(text, add_special_tokens=False).input_ids)
