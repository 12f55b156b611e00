"""The interface of a policy: which tokens of one layer a sequence keeps, and when it is asked.

Knows one layer of one sequence at a time. Does not know pages, formats or requests. What a policy keeps are tokens as
they are stored: nothing is coded a second time, and they keep the positions that their keys were rotated to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

from pagoda.cache.compression.critical import best_by_output
from pagoda.cache.compression.shares import Share, tokens_of_heads
from pagoda.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

MOST_TOKENS = 1 << 31


class LayerView(Protocol):
    """What a layer holds of a sequence of `num_slots` tokens, in fp32; what is not asked for is not computed.

    The last tokens have queries: as many as the policy asked for or as there are, or those of a block.
    """

    @property
    def number(self) -> int:
        """Of the layer within its group."""

    @property
    def num_heads(self) -> int:
        """KV heads."""

    @property
    def num_slots(self) -> int: ...

    @property
    def keys(self) -> torch.Tensor:
        """[KV heads, slots, width]"""

    @property
    def values(self) -> torch.Tensor:
        """[KV heads, slots, width]"""

    @property
    def logits(self) -> torch.Tensor:
        """Of the last queries: [KV heads, query heads of each, queries, slots], -inf where a query sees no token."""

    @property
    def weights(self) -> torch.Tensor:
        """What attention makes of `logits`, sinks of the model included."""

    @property
    def mass(self) -> torch.Tensor:
        """[KV heads, query heads of each, slots]: `weights`, summed over queries, without keeping them."""

    @property
    def peak(self) -> torch.Tensor:
        """The same, but the largest of all queries."""

    @property
    def group_logits(self) -> torch.Tensor:
        """[KV heads, queries, slots]: `logits`, summed over the query heads of each."""

    def group_mass(self, count: int) -> torch.Tensor:
        """[KV heads, count]: the softmax of `group_logits` over the first `count` slots, summed over queries.

        All queries must see these slots.
        """

    @property
    def output_norms(self) -> torch.Tensor:
        """How much each value is in the output of attention: [KV heads, query heads of each, slots], L1."""

    @property
    def num_tokens(self) -> int:
        """Of the sequence up to here, kept or not."""

    @property
    def unturned_queries(self) -> torch.Tensor:
        """The last queries times the scale of scores: [KV heads, query heads of each, queries, width].

        They are as they would be at position 0.
        """

    def mean_turn(self, first: int, count: int) -> torch.Tensor:
        """What such a query is multiplied by to be the mean of itself at `count` positions from `first` on."""

    @property
    def observed(self) -> Sequence[torch.Tensor]:
        """What the policy has made of all queries, for each attention call that reads the layer."""


class Observer(Protocol):
    """Sees the queries of all tokens, block by block, whatever is kept."""

    def observe(self, layer: LayerView, before: torch.Tensor | None) -> torch.Tensor:
        """What it makes of a block of tokens, beside what it made of those before; `layer` ends with the block.

        Only of one attention call. Blocks are the same however a prompt is cut, and `before` is left as it is.
        """

    def left_of(self, observed: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """What it goes on with of `observed` once the slots `kept` [KV heads, count] are left."""


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """How a sequence is compressed. Raises ConfigError for parameters that make no sense.

    tokens: how many tokens each layer and head keeps; or share: the same as a share of the prompt.
    after: it is compressed as soon as so many tokens of the prompt are computed, as if that were all; the rest, such as
    a question, comes on top. None is the whole prompt.
    every: once compressed, a sequence grows by so many tokens before it is compressed again; 0 is once, after the
    prompt.
    """

    tokens: int | None = None
    share: float | None = None
    after: int | None = None
    every: int = 0

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.share is None):
            raise ConfigError(f"{self.name} needs a budget: give tokens=1024 or share=0.25, one of the two.")
        if self.share is not None and not 0 < self.share <= 1:
            raise ConfigError(f"{self.name} has share={self.share:g}; give more than 0 and at most 1.")
        least = self.least_tokens
        if self.tokens is not None and not least <= self.tokens <= MOST_TOKENS:
            raise ConfigError(
                f"{self.name} has tokens={self.tokens}; give {least} to {MOST_TOKENS}, as {self._least_reason}."
            )
        if self.after is not None and not 1 <= self.after <= MOST_TOKENS:
            raise ConfigError(f"{self.name} has after={self.after}; give how many tokens of the prompt come before.")
        if not 0 <= self.every <= MOST_TOKENS:
            raise ConfigError(f"{self.name} has every={self.every}; give tokens, or 0 for once after the prompt.")

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    def is_of_prefix_alone(self) -> bool:
        """Whether what is left of a prefix follows from its tokens, whatever comes behind: then others may have it too.

        So it is `after` so many tokens, since even policies that look at the last queries have none but those of the
        prefix then, and where a text is repeated. Else a prompt ends with what is asked of it, and is compressed for
        that; with `every` later queries decide as well.
        """
        return not self.every and (self.after is not None or self.repeated_tokens is not None)

    def with_budget(self, num_tokens: int) -> Self:
        """The same of so many tokens, and of whatever is compressed: equal for two that keep the same of a prefix."""
        return replace(self, tokens=num_tokens, share=None, after=None)

    @property
    def num_queries(self) -> int:
        """How many of the last tokens' queries it looks at."""
        return 0

    @property
    def num_sinks(self) -> int | None:
        """How many of the first tokens it keeps, if it keeps those and the last ones, whatever they are; else None.

        Then it looks at no layer: `kept` is the same in all, and whole pages are left out. Queries see nothing that
        lies farther back, so sequences may be longer than the model's context.
        """
        return None

    @property
    def observer(self) -> Observer | None:
        """What observes the queries of all tokens, none of which is taken from what is cached then."""
        return None

    @property
    def repeated_tokens(self) -> int | None:
        """How many tokens the model repeats at once before a sequence is compressed; None if it does not.

        What is observed then is the largest weight of each token while its chunk is repeated: [KV heads, tokens].
        """
        return None

    @property
    def needs_outputs(self) -> bool:
        """Whether it looks at what values are in the output of attention."""
        return False

    @property
    def needs_rotation(self) -> bool:
        """Whether it has to be known how keys and queries are turned by their positions."""
        return False

    @property
    def is_even(self) -> bool:
        """Whether all layers and KV heads keep equally many tokens; else whole pages, as many in all."""
        return True

    @property
    def least_tokens(self) -> int:
        """What it always keeps, and one more."""
        return 1

    @property
    def _least_reason(self) -> str:
        return "a layer without a token cannot be attended to"

    def budget(self, num_prompt_tokens: int) -> int:
        """How many tokens a layer keeps of a sequence with such a prompt."""
        wanted = self.tokens if self.tokens is not None else int((self.share or 0) * num_prompt_tokens)
        return max(wanted, self.least_tokens)

    @abstractmethod
    def kept(self, layer: LayerView, count: int) -> torch.Tensor:
        """Which slots each head keeps: int64 [KV heads, count], ascending. There are more than `count`."""

    def pages_of_layers(self, num_layers: int, share: Share) -> list[int]:
        """How many pages the heads of each layer keep on average, where all together have `share`."""
        return [share.num_pages] * num_layers

    def kept_of_heads(self, layer: LayerView, share: Share) -> list[torch.Tensor]:
        """Which slots each head keeps, ascending, in whole pages: the heads of this layer have `share` on average."""
        return list(self.kept(layer, share.num_tokens))


@dataclass(frozen=True, kw_only=True)
class ScoredPolicy(Policy):
    """Keeps what has the highest scores, and the last `window` tokens.

    The share `critical` of what is kept by scores is chosen by these times the size of values (`critical.py`). With
    `head_floor` the budget of a layer goes to the best scores of all its heads together, and each has that share of an
    even one at least (AdaKV, arXiv 2407.11550; its authors take 0.2).
    """

    window: int = 0
    critical: float = 0.0
    head_floor: float | None = None

    def __post_init__(self) -> None:
        if self.head_floor is not None and not 0 <= self.head_floor <= 1:
            raise ConfigError(f"{self.name} has head_floor={self.head_floor:g}; give 0 to 1, such as 0.2.")
        if self.every and not self.is_even:
            raise ConfigError(
                f"{self.name} would give layers or heads other numbers of tokens every {self.every} tokens, which can "
                "be done once only: give every=0."
            )
        if not 0 <= self.critical <= 1:
            raise ConfigError(f"{self.name} has critical={self.critical:g}; give 0 to 1, such as 0.5.")
        if not 0 <= self.window <= MOST_TOKENS:
            raise ConfigError(f"{self.name} has window={self.window}; give how many of the last tokens are kept.")
        super().__post_init__()

    @property
    def needs_outputs(self) -> bool:
        return self.critical > 0

    @property
    def is_even(self) -> bool:
        return self.head_floor is None

    @property
    def least_tokens(self) -> int:
        return self.window + 1

    @property
    def _least_reason(self) -> str:
        return f"it always keeps the last {self.window} tokens" if self.window else super()._least_reason

    @abstractmethod
    def scores(self, layer: LayerView) -> torch.Tensor:
        """Of the tokens before the window, or of all: fp32 [KV heads, tokens]; higher is kept."""

    def num_recent(self, count: int) -> int:  # noqa: ARG002
        """How many of the last tokens are kept in any case, of `count`."""
        return self.window

    def kept(self, layer: LayerView, count: int) -> torch.Tensor:
        """Of equal scores the earlier token is kept."""
        import torch

        recent = self.num_recent(count)
        scores = self.scores(layer)[:, : layer.num_slots - recent]
        return torch.stack(self._with_recent(layer, scores, [count - recent] * len(scores)))

    def kept_of_heads(self, layer: LayerView, share: Share) -> list[torch.Tensor]:
        if self.head_floor is None:
            return super().kept_of_heads(layer, share)
        count, size = share.num_tokens, share.page_tokens
        recent = self.num_recent(count)
        scores, safe = self.scores(layer)[:, : layer.num_slots - recent], int(self.head_floor * count)
        counts = tokens_of_heads(scores, count - recent, max(safe - recent, 0), share.most_pages * size - recent)
        pages = share.whole_pages([recent + each for each in counts], max(recent, safe, 1))
        return self._with_recent(layer, scores, [each * size - recent for each in pages])

    def _with_recent(self, layer: LayerView, scores: torch.Tensor, counts: list[int]) -> list[torch.Tensor]:
        """As many of the best tokens of each head as `counts` says, and all behind those that have `scores`."""
        import torch

        recent = torch.arange(scores.shape[1], layer.num_slots, device=scores.device)
        return [torch.cat((best.sort().values, recent)) for best in self._best(layer, scores, counts)]

    def _best(self, layer: LayerView, scores: torch.Tensor, counts: list[int]) -> list[torch.Tensor]:
        if not self.critical:
            ranked = scores.sort(dim=-1, descending=True, stable=True).indices
            return [row[:count] for row, count in zip(ranked, counts, strict=True)]
        output_norms = layer.output_norms[..., : scores.shape[1]]
        return [
            best_by_output(row[None], norms[None], count, int((1 - self.critical) * count))[0]
            for row, norms, count in zip(scores, output_norms, counts, strict=True)
        ]
