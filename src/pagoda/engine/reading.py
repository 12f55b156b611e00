"""Which requests read their pages in part, and what of a model can be read so.

Knows requests and options, and what cannot be. Which pages are read is chosen by kernels, for every row anew.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pagoda.cache.reading import EXAMPLE, Quest, Reading, quest_of
from pagoda.config import EngineConfig
from pagoda.engine.request import Request
from pagoda.errors import ConfigError, InvalidSamplingError
from pagoda.kernels.base import AttentionUse, distance_obstacle
from pagoda.layouts.spec import Reach
from pagoda.models.attention import BoundSite

logger = logging.getLogger(__name__)


NOT_COMPRESSED = (
    "sparse_attention does not go with kv_compression, nor with a policy for context_full or memory_full: leave one of "
    "the two out."
)


class ReadingPlans:
    """Of a model whose attention calls are `sites`; sequences that do not say it themselves may be compressed.

    Raises ConfigError if what `config` asks for cannot be.
    """

    def __init__(
        self, sites: Sequence[BoundSite], uses: Sequence[AttentionUse], config: EngineConfig, is_compressed: bool
    ) -> None:
        self._page_tokens = config.block_size
        self._default = quest_of(config.sparse_attention)
        self.groups: set[int] = set()
        if self._default is not None:
            self._of(self._default, is_compressed)
            self._find_groups(sites, uses)

    def checked(self, request: Request, is_compressed: bool) -> Reading | None:
        """How much the generated tokens of a request read; None for all. Raises InvalidSamplingError if that cannot be.

        What holds for all does not hold for one that is compressed.
        """
        given = request.params.sparse_attention
        if given is None:
            return None if self._default is None or is_compressed else self._of(self._default, False)
        try:
            quest = quest_of(given)
            return None if quest is None else self._of(quest, is_compressed)
        except ConfigError as error:
            raise InvalidSamplingError(str(error)) from error

    def _of(self, quest: Quest, is_compressed: bool) -> Reading:
        if self._default is None:
            raise ConfigError(
                "sparse_attention needs summaries of pages, which this engine keeps none of: start it with "
                f"sparse_attention, as in {EXAMPLE}, or leave it out."
            )
        if is_compressed:
            raise ConfigError(NOT_COMPRESSED)
        return Reading.of(quest, self._page_tokens)

    def _find_groups(self, sites: Sequence[BoundSite], uses: Sequence[AttentionUse]) -> None:
        """Those all of whose calls can read in part."""
        obstacles: dict[int, str | None] = {}
        for site, use in zip(sites, uses, strict=True):
            obstacles[site.group] = obstacles.get(site.group) or _obstacle(site, use)
        self.groups = {group for group, obstacle in obstacles.items() if obstacle is None}
        reasons = "; ".join(sorted({reason for reason in obstacles.values() if reason is not None}))
        if not self.groups:
            reason = reasons or "it has no attention over all tokens"
            raise ConfigError(f"sparse_attention can leave nothing of this model unread: {reason}. Leave it out.")
        if reasons:
            logger.warning("sparse_attention leaves layers as they are: %s", reasons)


def _obstacle(site: BoundSite, use: AttentionUse) -> str | None:
    """Why the pages of an attention call are read whole, as the rest of a sentence; None if they need not be."""
    if site.rule.reach is not Reach.FULL:
        return f"layers of reach {site.rule.reach.value} read what their window or encoder left"
    if site.layer.key.plane.value_width:
        return "latents are keys and values at once"
    return distance_obstacle(use)
