"""How a plan changes with the context: what pictures of it are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pagoda.analysis.answer import Plan
from pagoda.analysis.options import PlanOptions
from pagoda.analysis.plan import make_plan

LEAST_TOKENS = 256
POINTS_PER_OCTAVE = 4


@dataclass(frozen=True)
class Curve:
    """Of one format: bytes of the plan's users, and users that fit, at each of `contexts`."""

    name: str
    contexts: tuple[int, ...]
    users_nbytes: tuple[int, ...]
    users: tuple[int | None, ...]


def curves(plan: Plan, source: str) -> tuple[Curve, ...]:
    """A curve for each format that can be; contexts are whole pages up to the model's longest, or twice the plan's."""
    longest = plan.model.max_model_len or 2 * plan.context
    contexts = _contexts(max(longest, plan.context, LEAST_TOKENS), plan.options.block_size)
    plans = [make_plan(source, _at(plan, context)) for context in contexts]
    found = []
    for index, each in enumerate(plan.formats):
        if each.obstacle is None:
            formats = [other.formats[index] for other in plans]
            sizes, users = tuple(f.users_nbytes for f in formats), tuple(f.users_by_memory for f in formats)
            found.append(Curve(each.name, contexts, sizes, users))
    return tuple(found)


def _at(plan: Plan, context: int) -> PlanOptions:
    """The same question about another context."""
    options = plan.options
    output = min(plan.output_tokens, max(context // 2, 1))
    shared = min(options.shared_prefix, context)
    again = replace(options, context=context, output_tokens=output, shared_prefix=shared)
    return replace(again, machine=None, memory=plan.machine.memory_nbytes)  # nothing is measured again


def _contexts(longest: int, page_tokens: int) -> tuple[int, ...]:
    """From some pages on, so many to a doubling."""
    points: Sequence[float] = [LEAST_TOKENS * 2 ** (i / POINTS_PER_OCTAVE) for i in range(41 * POINTS_PER_OCTAVE)]
    rounded = {round(point / page_tokens) * page_tokens for point in points if point < longest}
    return tuple(sorted({each for each in rounded if 0 < each < longest} | {longest}))
