"""How large a simulated cache is: in tokens, pages, bytes, or parts of what the trace would fill."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pagoda.analysis.simulation.pages import ModelPages
from pagoda.analysis.traces.workload import Workload, working_set
from pagoda.errors import ConfigError
from pagoda.planning.memory import MemoryPlan
from pagoda.units import format_nbytes, parse_bandwidth, parse_nbytes

USUAL = ("1%", "2%", "5%", "10%", "15%", "20%", "35%", "50%", "75%", "inf")
COUNTED = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(%|pages?|tokens?|)", re.IGNORECASE)
UNLIMITED = ("inf", "infinite", "unlimited")
MOST = 1 << 63  # of whatever is counted
MOST_PAGES = 1 << 26  # of all replicas together; a page that holds no bytes takes some sixty to be told apart


@dataclass(frozen=True)
class Capacity:
    """Of one replica: `num_pages` for all that keeps a whole prefix. `text` is how it was asked for.

    num_simulated: of these pages, as many as the trace could ever fill. nbytes: if it is known of which model the pages
    are. memory: the groups of a model of several kinds. page_nbytes: of a page of each group, where that is known.
    """

    text: str
    num_pages: int
    num_simulated: int
    is_unlimited: bool = False
    nbytes: int | None = None
    memory: MemoryPlan | None = None
    page_nbytes: tuple[int, ...] = ()


class Capacities:
    """Reads capacities for `workload` on pages of `model`, each for so many replicas.

    In the time model `num_running` of the largest requests run at once, and answers are kept whose tokens nobody knows.
    """

    def __init__(
        self, workload: Workload, model: ModelPages | None, num_running: int | None = None, num_replicas: int = 1
    ) -> None:
        whole, partial = working_set(workload)
        longest = max((workload.num_pages(asked) for asked in workload.requests), default=0)
        self.num_filled = whole + partial
        at_once = 1 if num_running is None else min(num_running, len(workload.requests))
        answers = 0 if num_running is None else sum_of_answers(workload)
        self._all = self.num_filled + (longest + 1) * at_once + answers
        self._num_replicas = num_replicas
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
        _check_number(text, number)
        if unit == "%":
            pages = number / 100 * self.num_filled
        else:
            pages = number if unit.startswith("page") else number / self._page_tokens
        if pages < 1 and unit != "%":
            raise ConfigError(f"A capacity of {text} is less than a page of {self._page_tokens} tokens; raise it.")
        return self._of_pages(text, max(int(pages), 1))

    def size_of_tier(self, text: str) -> int:
        """Of a tier below each cache: in bytes where it is known of which model pages are, else in tokens.

        Raises ConfigError for what is none, or holds no page.
        """
        wanted = text.strip().lower()
        if wanted in UNLIMITED:
            return MOST
        counted = COUNTED.fullmatch(wanted)
        if counted is None:
            self._check_bytes(text)
            size = parse_nbytes(wanted)
        else:
            size = int(self._tokens(float(counted[1]), counted[2]) * self._token_size)
        _check_number(text, size)
        if size < self._page_tokens * self._token_size:
            raise ConfigError(
                f"A tier of {text} holds no page of {self._page_tokens} tokens; raise it, or leave it out."
            )
        return size

    def rate_of_tier(self, text: str) -> float:
        """How much of it is read in a second, likewise."""
        counted = COUNTED.fullmatch(text.strip().lower())
        if counted is not None and counted[2] != "%" and float(counted[1]):
            return self._tokens(float(counted[1]), counted[2]) * self._token_size
        self._check_bytes(text)
        return parse_bandwidth(text)

    def _check_bytes(self, text: str) -> None:
        if self._model is None:
            raise ConfigError(
                f"{text} is in bytes, which only pages of a model have; give --model, or tokens such as 2000000."
            )

    def _tokens(self, number: float, unit: str) -> float:
        if unit == "%":
            return number / 100 * self.num_filled * self._page_tokens
        return number * self._page_tokens if unit.startswith("page") else number

    @property
    def _token_size(self) -> float:
        return 1 if self._model is None else self._model.page_nbytes / self._page_tokens

    def _of_pages(self, text: str, num_pages: int, is_unlimited: bool = False) -> Capacity:
        if self._model is None:
            return Capacity(text, num_pages, self._simulated(text, num_pages), is_unlimited)
        return self._of_model(text, num_pages, num_pages * self._model.page_nbytes, self._model, is_unlimited)

    def _of_model(
        self, text: str, num_pages: int, nbytes: int, model: ModelPages, is_unlimited: bool = False
    ) -> Capacity:
        memory = model.plan(nbytes)
        if memory is None:
            simulated = self._simulated(text, num_pages)
            return Capacity(text, num_pages, simulated, is_unlimited, nbytes, page_nbytes=model.group_nbytes)
        if is_unlimited:
            memory = _without_limit(memory, num_pages)
        num_pages, simulated = max(memory.num_pages), self._simulated(text, max(memory.num_pages))
        return Capacity(
            text, num_pages, simulated, is_unlimited, nbytes, _clipped(memory, simulated), model.group_nbytes
        )

    def _simulated(self, text: str, num_pages: int) -> int:
        """Raises ConfigError for more than can be told apart."""
        simulated = min(num_pages, self._all)
        if simulated * self._num_replicas > MOST_PAGES:
            raise ConfigError(
                f"A capacity of {text} is {simulated:,} pages in each of {self._num_replicas} replicas, more than the "
                f"{MOST_PAGES:,} that can be simulated; take larger pages (--block-size), a smaller capacity, fewer "
                "replicas or the first --requests."
            )
        return simulated

    def _of_nbytes(self, text: str, nbytes: int) -> Capacity:
        if self._model is None:
            raise ConfigError(
                f"A capacity of {text} is in bytes, which only pages of a model have; give --model, or tokens or pages."
            )
        _check_number(text, nbytes)
        num_pages = nbytes // self._model.page_nbytes
        if not num_pages:
            page = format_nbytes(self._model.page_nbytes)
            raise ConfigError(f"A capacity of {text} is less than a page, which takes {page}; raise it.")
        return self._of_model(text, num_pages, nbytes, self._model)


def _without_limit(memory: MemoryPlan, num_pages: int) -> MemoryPlan:
    """As many pages in every group; of states no more are kept than there are pages."""
    states = memory.states and replace(memory.states, num_slots=num_pages)
    return replace(memory, num_pages=(num_pages,) * len(memory.num_pages), states=states)


def _clipped(memory: MemoryPlan, most_pages: int) -> MemoryPlan:
    """No more of anything than the trace can fill."""
    states = memory.states and replace(memory.states, num_slots=min(memory.states.num_slots, most_pages))
    return replace(memory, num_pages=tuple(min(number, most_pages) for number in memory.num_pages), states=states)


def _check_number(text: str, number: float) -> None:
    if number >= MOST:
        raise ConfigError(f"A capacity of {text} is larger than any cache; write inf for one without limit.")


def sum_of_answers(workload: Workload) -> int:
    """The pages that answers can fill beyond what the trace tells of them."""
    unknown = (
        asked.num_prompt_tokens + asked.num_output_tokens - len(asked.sequence) * workload.unit_tokens
        for asked in workload.requests
    )
    return sum(-(-max(num_tokens, 0) // workload.page_tokens) for num_tokens in unknown)
