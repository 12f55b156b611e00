"""How many sequences of one length run at once over a memory plan: what the cache grants, counted without running it.

Counts pages as `PageGroup.growth_cost` and the scheduler's admission do; a test holds it to an engine that runs. A
sequence starts if the most that its prompt takes can be had, with a page left over for everyone who runs already, and
is counted if nobody has to be sent back until all have reached their length. Knows pages; not bytes, nor machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pagoda.cache.compression.base import Policy
from pagoda.cache.compression.progress import Plan
from pagoda.cache.compression.repeat import RepeatPrompt
from pagoda.cache.groups.rule import window_pages
from pagoda.config import EngineConfig
from pagoda.formats.page import PageGeometry
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.planning.memory import LEDGER_PAGES, MemoryPlan

# No tokenizer is at hand, and hardly any makes more of these words.
REPEAT_PROMPT = RepeatPrompt(whole=(0,) * 16, part=(0,) * 24)


class Held(NamedTuple):
    """Tokens that layers which attend to all keep: at most `at_start`, while the prompt is computed, `resting` after.

    Later they are at most `at_end`.
    """

    at_start: int
    resting: int
    at_end: int


@dataclass(frozen=True)
class Load:
    """Sequences of `num_tokens`, the last `num_generated` of which they generate, one at least.

    The first `num_shared` are the same for all. An encoder reads `num_encoded` for each. Layers that attend to all
    tokens keep those that `policy` says, or all; those that may be endless then compute no more
    than `max_exact` tokens before.
    """

    num_tokens: int
    num_generated: int = 1
    num_shared: int = 0
    num_encoded: int = 0
    policy: Policy | None = None
    max_exact: int | None = None

    @property
    def num_prompt(self) -> int:
        return max(self.num_tokens - self.num_generated, 1)

    @property
    def num_kept(self) -> int:
        """Tokens whose keys and values are kept: nothing is computed from the last."""
        return max(self.num_tokens - 1, 1)

    def held(self, page_tokens: int) -> Held:
        """Of such a sequence, in pages of `page_tokens`."""
        prompt, kept = self.num_prompt, self.num_kept
        if self.policy is None:
            return Held(prompt, prompt, kept)
        plan = Plan.of(self.policy, page_tokens, self.max_exact, REPEAT_PROMPT)
        compression = plan.begin(prompt)
        due, budget = compression.due, compression.budget
        if due is None or due > prompt:
            return Held(prompt, prompt, kept if due is None else min(kept, due))
        rest, every = prompt - due, plan.every
        resting = budget + (rest % every if every else rest)
        at_end = budget + (min(kept - due, every) if every else kept - due)
        at_end, at_start = max(resting, at_end), max(due, budget + min(rest, every or rest))
        if compression.repeat is None:
            return Held(at_start, resting, at_end)
        # To repeat a prompt takes steps in which others grow.
        return Held(max(at_start, compression.repeat.most_slots), at_end, at_end)


@dataclass(frozen=True)
class GroupNeed:
    """Pages that one group takes.

    `shared` are for all sequences. Each has at most `at_start` while its prompt is computed and `at_end` once it is,
    and others that want to start find that it holds `resting` and may want one more.
    """

    shared: int
    at_start: int
    at_end: int
    resting: int
    grows: bool = True

    def most(self, num_pages: int) -> int:
        """How many sequences `num_pages` pages are enough for."""
        left = num_pages - self.shared
        if left < max(self.at_start, self.at_end):
            return 0
        started = 1 + (left - self.at_start) // max(self.resting + self.grows, 1)
        return min(started, left // self.at_end) if self.at_end else started

    def pages(self, num_sequences: int) -> int:
        """What so many sequences hold once they have their length."""
        return self.shared + num_sequences * self.at_end


def group_need(geometry: PageGeometry, load: Load, step_tokens: int) -> GroupNeed:
    """What sequences take of the pages of one group, where at most `step_tokens` are computed in a step."""
    size, group = geometry.page_tokens, geometry.group
    if group.reach is Reach.ENCODER:
        encoded = -(-load.num_encoded // size)
        return GroupNeed(0, encoded, encoded, encoded, grows=False)
    if group.span is None:
        return whole_need(size, load)
    peak = window_pages(group.span, size, min(step_tokens, load.num_prompt), group.sink_tokens)
    # A window is where it was a page before, but for the page.
    lengths = range(max(load.num_prompt, load.num_kept - size), load.num_kept + 1)
    held = [held_pages(group, size, length) for length in lengths]
    reserved = [count + (length % size == 0) for count, length in zip(held, lengths, strict=True)]
    return GroupNeed(0, min(_pages(load.num_prompt, size), peak), max(reserved[:-1] or held), max(held))


def whole_need(page_tokens: int, load: Load) -> GroupNeed:
    """Where every token is kept."""
    shared = min(load.num_shared, load.num_prompt) // page_tokens
    start, resting, end = (_pages(count, page_tokens) for count in load.held(page_tokens))
    if load.policy is not None:  # what is compressed is shared with nobody; what it was made of is, while it starts
        return GroupNeed(shared, start - shared, end, resting)
    return GroupNeed(shared, start - shared, end - shared, resting - shared)


def held_pages(group: LayerGroup, page_tokens: int, num_tokens: int) -> int:
    """Pages that a sequence of so many tokens holds between two steps: its window, and its last full page."""
    first = max(min(group.first_needed(num_tokens) // page_tokens, num_tokens // page_tokens - 1), 0)
    return _pages(num_tokens, page_tokens) - first + min(_pages(group.sink_tokens, page_tokens), first)


def _pages(num_tokens: int, page_tokens: int) -> int:
    return -(-num_tokens // page_tokens)


def most_users(memory: MemoryPlan, config: EngineConfig, load: Load) -> int:
    """How many of such sequences are sure to find pages and states in `memory`; seats are not counted."""
    return min(users_by_group(memory, config, load))


def users_by_group(memory: MemoryPlan, config: EngineConfig, load: Load) -> list[int]:
    """The same by each group of `memory.pools` alone, and then by whatever else is limited."""
    step_tokens = config.max_num_batched_tokens
    limits = [group_need(geometry, load, step_tokens).most(num_pages) for geometry, num_pages in memory.pools]
    if not memory.geometries:  # pages without bytes keep the tokens
        limits.append(whole_need(config.block_size, load).most(LEDGER_PAGES))
    if memory.states is not None:
        limits.append(memory.states.num_slots)
    return limits
