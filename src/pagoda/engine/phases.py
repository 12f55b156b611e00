"""Where the time of a request goes, in two views that both are right: what it cost, and what it waited for.

Seconds alone; `accounting.py` says how they are measured.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PhaseSeconds:
    """What a request cost, in seconds: of a step that many share it has its own part.

    So these need not add up to the time it took, but over all requests they add up to the work that was done.

    queue: from arrival to the first step. match: looking its prompt up in the cache, and attaching what was found.
    promotion: bringing pages from tiers. prefill, decode: its rows of the model's forward passes. sampling: drawing
    tokens, with the form of a structured output applied. detokenise: making text. structured: waiting for what may
    follow in a structured output.
    """

    queue: float = 0.0
    match: float = 0.0
    promotion: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    sampling: float = 0.0
    detokenise: float = 0.0
    structured: float = 0.0


@dataclass(frozen=True)
class WallSeconds:
    """What a request waited for, by the clock on the wall: these add up to the time it took.

    While its pages came from tiers it waited for `promotion`. A step that it was in counts whole, for prefill or for
    decode, whoever else was in it. What is left is `waiting`: between two of its steps, as while others have their
    turn, or while it is held or sent back.
    """

    queue: float
    promotion: float
    prefill: float
    decode: float
    waiting: float

    @property
    def total(self) -> float:
        return self.queue + self.promotion + self.prefill + self.decode + self.waiting
