"""What limits the users of a plan though memory is left: sentences about pools that stay empty, and the ledger."""

from __future__ import annotations

from collections.abc import Iterator

from pagoda.analysis.answer import Plan
from pagoda.analysis.floors import is_cross
from pagoda.analysis.formulas import load_of
from pagoda.planning.memory import LEDGER_PAGES
from pagoda.planning.users import group_need
from pagoda.units import format_nbytes

LITTLE = 0.5  # of a pool


def pool_notes(plan: Plan) -> Iterator[str]:
    """What an engine would leave empty, for as many users as fit, each with the context of the plan."""
    memory, users = plan.main.memory, plan.main.users_by_memory
    if memory is None or not users:
        return
    if memory.states is not None and not memory.geometries and users < memory.states.num_slots:
        tokens = LEDGER_PAGES * plan.options.block_size
        yield (
            f"States are enough for {memory.states.num_slots:,} users, but the engine keeps account of {tokens:,} "
            f"tokens at most: {users:,} of {plan.context:,}."
        )
    for geometry, num_pages in memory.pools:
        need = group_need(geometry, load_of(plan), plan.options.max_num_batched_tokens)
        used = max(need.pages(users), need.at_start)
        if len(memory.pools) > 1 and not is_cross(geometry) and used < LITTLE * num_pages:
            name, sizes = geometry.group.name, [count * geometry.page_nbytes for count in (num_pages, used)]
            yield (
                f"The engine divides memory before it knows of contexts: of {format_nbytes(sizes[0])} for {name} "
                f"{users:,} user{'s' * (users > 1)} of {plan.context:,} tokens take {format_nbytes(sizes[1])} at most."
            )
