"""Keeps what queries still to come are expected to attend to (arXiv 2510.00636): as those of the prompt are spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pagoda.cache.compression.base import MOST_TOKENS, LayerView, ScoredPolicy
from pagoda.errors import ConfigError

if TYPE_CHECKING:
    import torch

MOST_FUTURE_TOKENS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ExpectedAttention(ScoredPolicy):
    """Queries to come are taken for normal, with the mean and covariance of those so far before these were turned.

    They are turned by the mean over the next `future` positions. The first `sinks` tokens are always kept, and their
    queries not counted. Expected weights are averaged over the group of a KV head and multiplied by the length of
    values, unless `critical` looks at these. Caps and sinks of a model's own attention are left out of account.

    Defaults are those of the authors. Statistics are of all queries: of some, they would depend on what was cached.
    """

    sinks: int = 4
    future: int = 512

    def __post_init__(self) -> None:
        if not 0 <= self.sinks <= MOST_TOKENS or not 1 <= self.future <= MOST_FUTURE_TOKENS:
            raise ConfigError(
                f"expected_attention needs sinks of at least 0 tokens and a future of 1 to {MOST_FUTURE_TOKENS}."
            )
        super().__post_init__()

    @property
    def name(self) -> str:
        return "expected_attention"

    @property
    def observer(self) -> Self:
        return self

    @property
    def needs_rotation(self) -> bool:
        return True

    @property
    def least_tokens(self) -> int:
        return self.sinks + self.window + 1

    @property
    def _least_reason(self) -> str:
        return f"it always keeps the first {self.sinks} tokens and the last {self.window}"

    def observe(self, layer: LayerView, before: torch.Tensor | None) -> torch.Tensor:
        """[KV heads, query heads of each, width + 1, width]: sums of products of deviations, and the means."""
        import torch

        queries = layer.unturned_queries
        first = layer.num_tokens - queries.shape[2]
        queries, num_before = queries[:, :, max(self.sinks - first, 0) :], max(first - self.sinks, 0)
        heads, group, count, width = queries.shape
        if before is None:
            before = queries.new_zeros(heads, group, width + 1, width)
        if not count:
            return before
        # Deviations from a mean that moves (Chan, Golub and LeVeque, 1979): sums of squares would lose small ones.
        means = queries.mean(dim=2, keepdim=True)
        moved, share = means - before[:, :, -1:], count / (num_before + count)
        products = (queries - means).mT @ (queries - means) + moved.mT @ moved * (num_before * share)
        return torch.cat((before[:, :, :-1] + products, before[:, :, -1:] + moved * share), dim=2)

    def left_of(self, observed: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """All of it: statistics are of queries, whose tokens may be gone."""
        return observed

    def scores(self, layer: LayerView) -> torch.Tensor:
        import torch

        statistics = torch.cat(list(layer.observed), dim=1)
        turn = layer.mean_turn(layer.num_tokens, self.future)
        means = statistics[:, :, -1:] @ turn
        covariances = turn.T @ (statistics[:, :, :-1] / (layer.num_tokens - self.sinks)) @ turn
        keys = layer.keys[:, self.sinks :]
        logits = [
            (keys @ mean.mT)[..., 0] + (keys @ covariance * keys).sum(dim=-1) / 2
            for mean, covariance in zip(means.unbind(1), covariances.unbind(1), strict=True)
        ]
        weights = torch.stack(logits, dim=1).softmax(dim=-1).mean(dim=1)
        if not self.critical:
            weights = weights * layer.values[:, self.sinks :].norm(dim=-1)
        return torch.nn.functional.pad(weights, (self.sinks, 0), value=float("inf"))
