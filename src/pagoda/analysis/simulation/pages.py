"""The pages of a model, from its configuration: how many bytes one takes, and which kinds there are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pagoda.config import EngineConfig
from pagoda.errors import ConfigError
from pagoda.formats.state import StateGeometry
from pagoda.layouts.spec import Reach
from pagoda.planning.facts import MachineFacts, ModelFacts
from pagoda.planning.memory import MemoryPlan, plan_memory
from pagoda.planning.page_formats import choose_geometries


@dataclass(frozen=True)
class ModelPages:
    """The pages of the model that `facts` are of, as `config` has them. Raises ConfigError for one with an encoder."""

    facts: ModelFacts
    config: EngineConfig

    def __post_init__(self) -> None:
        if self.facts.encoder is not None:
            raise ConfigError("Traces tell nothing of what an encoder reads; give a model without one.")

    @property
    def page_nbytes(self) -> int:
        """Of a page in every group, which together keep its tokens."""
        nbytes = sum(geometry.page_nbytes for geometry in choose_geometries(self.facts, self.config))
        if not nbytes:
            raise ConfigError("This model keeps no pages, only states; give a model that attends.")
        return nbytes

    @property
    def group_nbytes(self) -> tuple[int, ...]:
        """Of a page of each group, and of a state if there are states."""
        pages = [geometry.page_nbytes for geometry in choose_geometries(self.facts, self.config)]
        if not self.facts.spec.states:
            return tuple(pages)
        return (*pages, StateGeometry(self.facts.spec.states, self.facts.number_nbytes).page_nbytes)

    @property
    def is_plain(self) -> bool:
        """Whether there is one kind of pages, which keep every token: then it does not matter of how many tokens."""
        groups = self.facts.spec.groups
        return len(groups) == 1 and groups[0].reach is Reach.FULL and not self.facts.spec.states

    def plan(self, nbytes: int) -> MemoryPlan | None:
        """How so many bytes are divided among the groups; None where there is nothing to divide."""
        if self.is_plain:
            return None
        return plan_memory(self.facts, MachineFacts(None), replace(self.config, kv_cache_memory_bytes=nbytes))
