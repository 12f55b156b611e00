"""How large a simulated cache is: in tokens, pages, bytes, or parts of what the trace would fill."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pagoda.analysis.simulation.pages import ModelPages
from pagoda.analysis.traces.workload import Workload, working_set
from pagoda.errors import ConfigError
from pagoda.planning.memory import MemoryPlan
from pagoda.units import format_nbytes, parse_nbytes

USUAL = ("1%", "2%", "5%", "10%", "15%", "20%", "35%", "50%", "75%", "inf")
COUNTED = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(%|pages?|tokens?|)", re.IGNORECASE)
UNLIMITED = ("inf", "infinite", "unlimited")


@dataclass(frozen=True)
class Capacity:
    """Of one replica: `num_pages` for all that keeps a whole prefix. `text` is how it was asked for.

    nbytes: if it is known of which model the pages are. memory: the groups of a model that has several kinds.
    page_nbytes: of a page of each group, where that is known.
    """

    text: str
    num_pages: int
    is_unlimited: bool = False
    nbytes: int | None = None
    memory: MemoryPlan | None = None
    page_nbytes: tuple[int, ...] = ()


class Capacities:
    """Reads capacities for `workload`, of whose largest requests so many run at once, on pages of `model`."""

    def __init__(self, workload: Workload, model: ModelPages | None, num_running: int) -> None:
        whole, partial = working_set(workload)
        longest = max((workload.num_pages(asked) for asked in workload.requests), default=0)
        self.num_filled = whole + partial
        self._all = self.num_filled + (longest + 1) * num_running + sum_of_answers(workload)
        self._page_tokens = workload.page_tokens
        self._model = model

    def read(self, text: str) -> Capacity:
        """Raises ConfigError for what is no capacity, or is less than a page."""
        wanted = text.strip().lower()
        if wanted in UNLIMITED:
            return self._of_pages(text, self._all, is_unlimited=True)
        counted = COUNTED.fullmatch(wanted)
        if counted is None:
            return self._of_nbytes(text, parse_nbytes(wanted))
        number, unit = float(counted[1]), counted[2]
        if unit == "%":
            pages = number / 100 * self.num_filled
        else:
            pages = number if unit.startswith("page") else number / self._page_tokens
        if pages < 1 and unit != "%":
            raise ConfigError(f"A capacity of {text} is less than a page of {self._page_tokens} tokens; raise it.")
        return self._of_pages(text, max(int(pages), 1))

    def _of_pages(self, text: str, num_pages: int, is_unlimited: bool = False) -> Capacity:
        if self._model is None:
            return Capacity(text, num_pages, is_unlimited)
        return self._of_model(text, num_pages, num_pages * self._model.page_nbytes, self._model, is_unlimited)

    def _of_model(
        self, text: str, num_pages: int, nbytes: int, model: ModelPages, is_unlimited: bool = False
    ) -> Capacity:
        memory = model.plan(nbytes)
        if memory is not None and is_unlimited:
            memory = _without_limit(memory, num_pages)
        if memory is not None:
            num_pages = max(memory.num_pages)
        return Capacity(text, num_pages, is_unlimited, nbytes, memory, model.group_nbytes)

    def _of_nbytes(self, text: str, nbytes: int) -> Capacity:
        if self._model is None:
            raise ConfigError(
                f"A capacity of {text} is in bytes, which only pages of a model have; give --model, or tokens or pages."
            )
        num_pages = nbytes // self._model.page_nbytes
        if not num_pages:
            page = format_nbytes(self._model.page_nbytes)
            raise ConfigError(f"A capacity of {text} is less than a page, which takes {page}; raise it.")
        return self._of_model(text, num_pages, nbytes, self._model)


def _without_limit(memory: MemoryPlan, num_pages: int) -> MemoryPlan:
    """As many pages in every group; of states no more are kept than there are pages."""
    states = memory.states and replace(memory.states, num_slots=num_pages)
    return replace(memory, num_pages=(num_pages,) * len(memory.num_pages), states=states)


def sum_of_answers(workload: Workload) -> int:
    """The pages that answers can fill beyond what the trace tells of them."""
    unknown = (
        asked.num_prompt_tokens + asked.num_output_tokens - len(asked.sequence) * workload.unit_tokens
        for asked in workload.requests
    )
    return sum(-(-max(num_tokens, 0) // workload.page_tokens) for num_tokens in unknown)
