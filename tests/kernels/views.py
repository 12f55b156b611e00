"""Views of cases whose rows are not the last of all tokens: trees, packed pages, and pages that rows choose."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from kernels.cases import NAN_BYTE, Case, Shape, build, starts
from pagoda.formats.page import summary_numbers
from pagoda.kernels.base import CHAIN, GroupView, LayerSummaries
from pagoda.kernels.reference import ReferenceKernels

LAYERS = 3  # of the pages that `build` makes, in the second of which it stores
# Pages that rows read at most, and from which sequence on they read all.
BUDGET, READS_ALL = 6, 5


def chain_of(parents, row):
    """The ancestors of a row, the first one first, and itself."""
    chain = [row]
    while parents[chain[0]] is not None:
        chain.insert(0, parents[chain[0]])
    return chain


def with_trees(case, trees):
    """`case.view`, where new rows of sequence s have the parents `trees[s]`, or follow one another if that is None."""
    positions, ancestors = [], []
    for (past, new), parents in zip(case.shape.sequences, trees, strict=True):
        for row in range(new):
            chain = [*range(row + 1)] if parents is None else chain_of(parents, row)
            positions.append(past + len(chain) - 1)
            ancestors.append(CHAIN if parents is None else sum(1 << each for each in chain[:-1]))
    return replace(
        case.view, positions=torch.tensor(positions).int(), ancestors=torch.tensor(ancestors, dtype=torch.int64)
    )


def random_tree(rows, seed):
    """Every row hangs under an earlier one, or under what is stored."""
    choices = torch.Generator().manual_seed(seed)
    return [[None, *range(row)][int(torch.randint(row + 1, (1,), generator=choices))] for row in range(rows)]


@dataclass(frozen=True)
class Plan:
    """Of `past` tokens heads have `num_pages` packed pages on average, and `tail` tokens behind, `new` of them new."""

    past: int
    num_pages: int
    tail: int
    new: int


@dataclass(frozen=True)
class Packed:
    """A case of packed sequences, which kept slots `kept[s][h]` of what `case` was built with."""

    case: Case
    kept: list[list[torch.Tensor]]
    key: torch.Tensor  # of the tails
    value: torch.Tensor | None


def give_out(num_cells: int, num_heads: int, most: int, generator: torch.Generator) -> list[int]:
    """Cells of each head of each layer; some have none."""
    counts = torch.zeros(num_heads, dtype=torch.int64)
    while (left := num_cells - int(counts.sum())) > 0:
        heads = torch.randint(num_heads - 1, (left,), generator=generator)
        counts = (counts + heads.bincount(minlength=num_heads)).clamp(max=most)
    return counts.roll(2).tolist()


def pack(shape: Shape, plans: tuple[Plan, ...], kernels=None) -> Packed:
    """Stored and packed by the reference, or by `kernels`; whatever else there is in the pages is NaN."""
    kernels, generator = kernels or ReferenceKernels(), torch.Generator().manual_seed(7)
    stored = build(replace(shape, sequences=tuple((plan.past, 0) for plan in plans)))
    size, heads, geometry = shape.page_tokens, shape.kv_heads, stored.layer.geometry
    num_tails = [-(-plan.tail // size) for plan in plans]
    num_old = len(stored.layer.pages)
    num_own = [plan.num_pages + each for plan, each in zip(plans, num_tails, strict=True)]
    pool = torch.full((num_old + sum(num_own), geometry.page_nbytes), NAN_BYTE, dtype=torch.uint8)
    pool[:num_old] = stored.layer.pages
    own = (torch.randperm(sum(num_own), generator=generator) + num_old).split(num_own)
    kept, cell_starts = [], []
    for number, (plan, table) in enumerate(zip(plans, own, strict=True)):
        first, last = stored.whole.page_starts[number : number + 2].tolist()
        counts = give_out(plan.num_pages * LAYERS * heads, LAYERS * heads, plan.past // size, generator)
        orders = (torch.randperm(plan.past, generator=generator) for _ in range(heads))
        own_counts = counts[heads : 2 * heads]
        kept.append([order[: size * each].sort().values for order, each in zip(orders, own_counts, strict=True)])
        cell_starts.append(starts(counts))
        target = torch.full((plan.num_pages, geometry.page_nbytes), NAN_BYTE, dtype=torch.uint8)
        pages = stored.whole.page_indices[first:last].long()
        kernels.pack_tokens(stored.layer, pages, kept[-1], target, int(cell_starts[-1][heads]))
        pool[table[: plan.num_pages]] = target
    lengths = torch.tensor([plan.num_pages * size + plan.tail for plan in plans]).int()
    tails, new = starts([plan.tail for plan in plans]), starts([plan.new for plan in plans])
    view = GroupView(
        torch.cat(own).int(), starts(num_own), tails, lengths, is_compacted=True, cell_starts=torch.stack(cell_starts)
    )
    layer = replace(stored.layer, pages=pool)
    key, value, query = (
        None if width is None else torch.randn(rows, count, width, generator=generator).to(shape.dtype)
        for rows, count, width in (
            (int(tails[-1]), heads, shape.key_width),
            (int(tails[-1]), heads, None if shape.has_latents else shape.value_width),
            (int(new[-1]), shape.heads, shape.key_width),
        )
    )
    kernels.store(key, value, layer, view)
    case = replace(stored, layer=layer, whole=view, view=replace(view, query_starts=new), query=query)
    return Packed(case, kept, key, value)


def reading(shape: Shape, budget: int = BUDGET, first_layer: int = 0) -> Case:
    """Stored keys and values, of which all sequences but one read so many pages at most."""
    case = build(shape)
    plane = case.layer.key.plane
    numbers = torch.full((len(case.layer.pages), plane.num_heads, summary_numbers(plane)), float("nan")).bfloat16()
    summaries = LayerSummaries(numbers, torch.zeros(len(case.layer.pages), dtype=torch.uint8))
    readings = torch.tensor([[budget, first_layer]] * len(shape.sequences), dtype=torch.int32)
    readings[READS_ALL:] = 0
    return replace(case, layer=replace(case.layer, summaries=summaries), view=replace(case.view, readings=readings))


def rows_of(case: Case):
    """Number, sequence, and the pages that it sees, of every row."""
    starts = case.view.query_starts.tolist()
    for sequence, length in enumerate(case.view.context_lengths.tolist()):
        for row in range(starts[sequence], starts[sequence + 1]):
            num_tokens = length - starts[sequence + 1] + row + 1
            count = -(-num_tokens // case.shape.page_tokens)
            yield row, sequence, num_tokens, case.view.page_indices[case.view.page_starts[sequence] :][:count].long()
