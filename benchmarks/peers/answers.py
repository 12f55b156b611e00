"""Prompts whose right answers are forced upon an engine, and how its answers differ from those of the whole cache.

Imports no engine: each runs in an environment of its own.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Case:
    """A prompt and what follows it; the last `num_question` tokens of the prompt are the question."""

    prompt: list[int]
    answer: list[int]
    num_question: int = 0


@dataclass(frozen=True)
class Result:
    """Of the cases of one task under one policy."""

    perplexity: float
    divergence: float
    divergence_99: float
    same_top: float
    answered: float
    kept: float  # of the bytes of bf16 pages


def compared(cases: list[Case], found: list[torch.Tensor], whole: list[torch.Tensor], kept: float) -> Result:
    """Of log-probabilities [answer tokens, vocabulary] of every case, as `found` and with the `whole` cache."""
    divergences, same, losses, answered = [], [], [], []
    for case, ours, theirs in zip(cases, found, whole, strict=True):
        answer = torch.tensor(case.answer)
        divergences.append((theirs.exp() * (theirs - ours)).sum(dim=-1))
        same.append(ours.argmax(-1) == theirs.argmax(-1))
        losses.append(-ours.gather(1, answer[:, None])[:, 0])
        answered.append(bool((ours.argmax(-1) == answer).all()))
    divergence = torch.cat(divergences)
    return Result(
        math.exp(float(torch.cat(losses).mean())),
        float(divergence.mean()),
        float(divergence.quantile(0.99)),
        float(torch.cat(same).float().mean()),
        sum(answered) / len(answered),
        kept,
    )


def write_cases(path: Path, tasks: dict[str, list[Case]]) -> None:
    path.write_text(json.dumps({task: [asdict(case) for case in cases] for task, cases in tasks.items()}) + "\n")


def read_cases(path: Path) -> dict[str, list[Case]]:
    return {task: [Case(**case) for case in cases] for task, cases in json.loads(path.read_text()).items()}
