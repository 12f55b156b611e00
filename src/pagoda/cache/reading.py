"""How much of its pages a sequence reads while it decodes: what people write for `sparse_attention`, in pages.

Nothing is left out of memory: each row chooses anew. Knows numbers of pages, not which are chosen: kernels do that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from pagoda.cache.compression.base import MOST_TOKENS
from pagoda.cache.compression.choice import MOST_LENGTH, NONE, read_parameters
from pagoda.checks import shown
from pagoda.errors import ConfigError

EXAMPLE = "quest:tokens=2048"
# The first page, the last one, and one to choose.
LEAST_PAGES = 3


@dataclass(frozen=True, kw_only=True)
class Quest:
    """Query-aware sparsity (arXiv 2406.10774). Raises ConfigError for parameters that make no sense.

    tokens: how many a token that is generated attends to, in each layer and KV head, in whole pages.
    dense_layers: the first layers attend to all. Two in the paper.
    """

    tokens: int | None = None
    dense_layers: int = 2

    def __post_init__(self) -> None:
        if self.tokens is None:
            raise ConfigError(f"quest needs a budget: give tokens, as in {EXAMPLE}.")
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise ConfigError(f"quest has tokens={self.tokens}; give 1 to {MOST_TOKENS}.")
        if not 0 <= self.dense_layers <= MOST_TOKENS:
            raise ConfigError(f"quest has dense_layers={self.dense_layers}; give how many layers attend to all.")


@dataclass(frozen=True)
class Reading:
    """What generated tokens read: at most `most_pages` of `page_tokens`, in layers from number `dense_layers` on.

    What is written so depends on what was read: it is nobody else's, and computed so again if it must be.
    """

    most_pages: int
    page_tokens: int
    dense_layers: int

    @classmethod
    def of(cls, quest: Quest, page_tokens: int) -> Self:
        """Raises ConfigError if there would be nothing to choose."""
        assert quest.tokens is not None
        most_pages = -(-quest.tokens // page_tokens)
        if most_pages < LEAST_PAGES:
            raise ConfigError(
                f"sparse_attention has tokens={quest.tokens}, which are {most_pages} pages of {page_tokens}, and the "
                f"first and the last one are always read; give tokens={LEAST_PAGES * page_tokens} or more."
            )
        return cls(most_pages, page_tokens, quest.dense_layers)

    def num_exact_tokens(self, num_prompt_tokens: int) -> int:
        """How many tokens of a sequence with such a prompt attend to all before them."""
        return max(num_prompt_tokens, self.most_pages * self.page_tokens)


@lru_cache(maxsize=256)
def quest_of(text: str) -> Quest | None:
    """What "quest:tokens=2048" asks for; None for "none". Raises ConfigError, which says what there is."""
    name, _, parameters = text.partition(":")
    if text == NONE:
        return None
    if name != "quest" or len(text) > MOST_LENGTH:
        raise ConfigError(f"sparse_attention is {shown(text)}: give none, or quest with a budget, as in {EXAMPLE}.")
    try:
        return read_parameters(Quest, name, parameters)
    except ConfigError as error:
        raise ConfigError(f"sparse_attention is {shown(text)}: {error}") from None
