"""Each figure of a plan as a formula with its values in it: what `pagoda plan --explain` prints.

The one place that writes bytes out as products. Nothing is computed with them: a test holds every value equal to what
the plan says and to what its formula comes to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from math import prod

from pagoda.analysis.answer import Plan
from pagoda.analysis.floors import is_cross
from pagoda.formats.page import PageGeometry, aligned
from pagoda.formats.state import StateSlot
from pagoda.planning.users import GroupNeed, Load, group_need


@dataclass(frozen=True)
class Formula:
    """`value` is what `expression` comes to: numbers, their names, + - x / ceil floor min and brackets."""

    name: str
    expression: str
    value: float
    unit: str


def formulas(plan: Plan) -> tuple[Formula, ...]:
    """Of the model, then of its pages in the main format, of memory and of time."""
    return (*_weights(plan), *_tokens(plan), *_states(plan), *_pages(plan), *_memory(plan), *_users(plan), *_time(plan))


def _weights(plan: Plan) -> Iterator[Formula]:
    model = plan.model
    if model.parameters and model.weight_nbytes == model.parameters * plan.activations.number_nbytes:
        expression = f"{model.parameters:,} parameters x {plan.activations.number_nbytes} bytes"
        yield Formula("weights", expression, model.weight_nbytes, "bytes")


def _tokens(plan: Plan) -> Iterator[Formula]:
    for geometry, size in zip(plan.main.geometries, plan.main.groups, strict=True):
        yield Formula(f"a token, {size.name}", token_expression(geometry), size.nbytes_per_token, "bytes")
    load = load_of(plan)
    for geometry, size in zip(plan.main.geometries, plan.main.groups, strict=True):
        tokens = plan.encoder_tokens if is_cross(geometry) else load.held(geometry.page_tokens).at_end
        pages = size.context_nbytes // geometry.page_nbytes
        count = f"{pages:,} pages" if geometry.group.span else f"ceil({tokens:,} / {geometry.page_tokens}) pages"
        expression = f"{count} x {geometry.page_nbytes:,} bytes"
        yield Formula(f"{plan.context:,} tokens, {size.name}", expression, size.context_nbytes, "bytes")


def token_expression(geometry: PageGeometry) -> str:
    """The bytes of a token in all layers of a group, those that are alike taken together."""
    parts = [_layer_expression(geometry, layer) for layer in range(len(geometry.slots))]
    terms = [f"{len([*alike])} layers x {part}" for part, alike in groupby(sorted(parts))]
    return " + ".join(terms)


def _layer_expression(geometry: PageGeometry, layer: int) -> str:
    """2 planes x 8 heads x 128 x 2 bytes, or the bytes of a page of codes over its tokens."""
    planes, size = geometry.slots[layer], geometry.page_tokens
    per_number = {aligned(slot.nbytes) / (slot.plane.elements_per_token * size) for slot in planes}
    shapes = {(slot.plane.num_heads, slot.plane.width) for slot in planes}
    if len(per_number) == len(shapes) == 1 and (number := per_number.pop()).is_integer():
        [(heads, width)] = shapes
        return f"{len(planes)} x {heads} heads x {width} x {number:.0f} bytes"
    sizes = " + ".join(f"{aligned(slot.nbytes):,} of {slot.plane.name}s" for slot in planes)
    return f"({sizes}) bytes / {size} tokens"


def _states(plan: Plan) -> Iterator[Formula]:
    """Of one sequence, however long."""
    parts = [" + ".join(map(_tensor_expression, slots)) for slots in plan.states.slots]
    if parts:
        terms = [f"{len([*alike])} layers x ({part}) bytes" for part, alike in groupby(sorted(parts))]
        yield Formula("recurrent states of a user", " + ".join(terms), plan.states.page_nbytes, "bytes")


def _tensor_expression(slot: StateSlot) -> str:
    count = prod(slot.tensor.shape)
    if aligned(slot.nbytes) != slot.nbytes or slot.nbytes % count:
        return f"{aligned(slot.nbytes):,}"
    return " x ".join(f"{size:,}" for size in (*slot.tensor.shape, slot.nbytes // count))


def _pages(plan: Plan) -> Iterator[Formula]:
    """What the last page wastes, where the cache is as large as the weights, and what devices keep twice."""
    main, gpus = plan.main, plan.options.gpus
    token = f"{main.nbytes_per_token:,.10g} bytes"
    for waste in (each for each in plan.waste if each.page_tokens == plan.options.block_size and main.groups):
        expression = f"({waste.page_tokens} - 1) / 2 tokens x {token}"
        yield Formula("left empty in the last page, expected", expression, waste.expected_nbytes, "bytes")
    is_plain = len(main.geometries) == 1 and main.geometries[0].group.span is None and plan.options.policy is None
    if is_plain and main.overtakes_at and gpus == 1:
        states = plan.users * plan.model.state_nbytes
        weights = f"{plan.model.weight_nbytes:,} of weights" + (f" - {states:,} of states" if states else "")
        expression = f"ceil(({weights}) / ({plan.users:,} users x {token}))"
        yield Formula("the cache equals the weights at", expression, main.overtakes_at, "tokens")
    heads = {plane.num_heads for each in main.geometries for layout in each.group.layouts for plane in layout.planes}
    if gpus > 1 and len(heads) == 1 and plan.sharding.copies >= 1:
        [count] = heads
        expression = f"{gpus} devices x ceil({count} / {gpus}) heads / {count} heads"
        yield Formula("copies of a token", expression, plan.sharding.copies, "")


def _memory(plan: Plan) -> Iterator[Formula]:
    needed, budget = plan.activations, plan.budget
    expression = (
        f"{needed.num_tokens:,} tokens x {needed.token_numbers:,} numbers x {needed.number_nbytes} bytes + "
        f"{needed.num_rows:,} rows x {needed.vocab_size:,} logits x ({needed.number_nbytes} + 4) bytes"
    )
    yield Formula("activations, at most", expression, needed.nbytes, "bytes")
    if budget is not None and budget.memory_nbytes is not None:
        taken = f"{budget.weight_nbytes:,} of weights - {budget.activation_nbytes:,} of activations"
        expression = f"{budget.memory_nbytes:,} - {taken}"
        yield Formula("left for the cache", expression, budget.cache_nbytes, "bytes")
    if plan.users > 1 and len(plan.main.geometries) == 1 and plan.options.gpus == 1 and not plan.model.state_nbytes:
        [geometry] = plan.main.geometries
        need = group_need(geometry, load_of(plan), plan.options.max_num_batched_tokens)
        page_nbytes = plan.options.page_nbytes(geometry)
        expression = f"({need.shared:,} + {plan.users:,} users x {need.at_end:,}) pages x {page_nbytes:,} bytes"
        yield Formula(f"{plan.users:,} users", expression, plan.main.users_nbytes, "bytes")


def _users(plan: Plan) -> Iterator[Formula]:
    memory, step = plan.main.memory, plan.options.max_num_batched_tokens
    if memory is None:
        return
    for geometry, num_pages in memory.pools:
        need = group_need(geometry, load_of(plan), step)
        value, least = need.most(num_pages), ", at least" if geometry.group.span else ""
        if value:
            name = f"users, by {geometry.group.name} pages{least}"
            yield Formula(name, users_expression(need, num_pages), value, "users")
    if memory.states is not None:
        yield Formula("users, by states", f"{memory.states.num_slots:,} slots", memory.states.num_slots, "users")


def users_expression(need: GroupNeed, num_pages: int) -> str:
    """One starts beside others that rest, and all must reach their length."""
    left = f"{num_pages:,} - {need.shared:,} shared" if need.shared else f"{num_pages:,}"
    rest = f"{need.resting} + 1" if need.grows else f"{need.resting}"
    started = f"1 + floor(({left} - {need.at_start:,} to start) / ({rest}))"
    return f"min({started}, floor(({left}) pages / {need.at_end:,}))" if need.at_end else started


def _time(plan: Plan) -> Iterator[Formula]:
    bandwidth = plan.machine.bandwidth
    for floor in plan.main.decode:
        expression = (
            f"({floor.weight_nbytes:,} of weights + {floor.cache_nbytes:,} of cache) bytes / {bandwidth:,.0f} a second"
        )
        yield Formula(f"a decode step of {floor.users:,} users", expression, floor.seconds, "seconds")
    flops = plan.machine.flops_in(plan.model.dtype)
    if plan.prefill is not None and flops is not None:
        prefill, gpus = plan.prefill, plan.options.gpus
        operations = f"({prefill.weight_flops:,} of weights + {prefill.attention_flops:,} of attention)"
        expression = f"{operations} operations / ({gpus} x {flops:,.0f} a second)"
        yield Formula(f"prefill of {prefill.num_computed:,} tokens", expression, prefill.seconds, "seconds")


def load_of(plan: Plan) -> Load:
    """What each user of the plan brings."""
    options = plan.options
    most = plan.model.max_model_len if options.is_endless else None
    return Load(plan.context, plan.output_tokens, options.shared_prefix, plan.encoder_tokens, options.policy, most)
