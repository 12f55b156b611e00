"""Keeps what the model attends to while it repeats what it has read (KVzip, arXiv 2505.23416)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagoda.cache.compression.base import MOST_TOKENS, LayerView, ScoredPolicy
from pagoda.errors import ConfigError

if TYPE_CHECKING:
    import torch

NUM_SINKS = 4
# Of fewer tokens more would be computed for what is asked than for what is repeated.
FEWEST_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class KVzip(ScoredPolicy):
    """A token's score is the largest weight that any query head of its KV head gives it while its chunk is repeated.

    Before it is compressed a sequence is asked to repeat itself, `chunk` tokens at a time, and the model is given the
    chunk as if it did. What it is asked afterwards is not known, so that what is kept serves all questions. The first
    tokens are always kept: the authors keep the system prompt.

    As in the authors' code, weights are relative to the first tokens, the chunk and its repetition, not to all that
    attention sees: that costs as much for a chunk of a long text as of a short one, and is the same where a text is one
    chunk. Here they are relative to all tokens in the pages of these. The authors compare tokens of all layers, here
    each layer keeps as many; with `head_floor` those of its heads are compared.
    """

    chunk: int = 2048

    def __post_init__(self) -> None:
        if self.every:
            raise ConfigError(f"kvzip has every={self.every}; leave it out: a text is repeated and compressed once.")
        if not FEWEST_TOKENS <= self.chunk <= MOST_TOKENS:
            raise ConfigError(f"kvzip has chunk={self.chunk}; give at least {FEWEST_TOKENS} tokens to repeat at once.")
        super().__post_init__()

    @property
    def name(self) -> str:
        return "kvzip"

    @property
    def repeated_tokens(self) -> int:
        return self.chunk

    @property
    def least_tokens(self) -> int:
        return NUM_SINKS + self.window + 1

    @property
    def _least_reason(self) -> str:
        recent = f" and the last {self.window}" if self.window else ""
        return f"it always keeps the first {NUM_SINKS} tokens{recent}"

    def scores(self, layer: LayerView) -> torch.Tensor:
        import torch

        peaks = torch.stack(list(layer.observed)).amax(dim=0)
        peaks[:, :NUM_SINKS] = float("inf")
        return peaks
