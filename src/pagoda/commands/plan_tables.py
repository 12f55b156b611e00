"""A plan as tables for people: legible in 80 columns, without frames, so that they read well in files too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pagoda.analysis.answer import FormatPlan, Plan
from pagoda.analysis.machines import PRESETS
from pagoda.commands.plan_pools import pool_notes
from pagoda.config import DEFAULT_KV_CACHE_NBYTES, DEFAULT_KV_CACHE_SHARE
from pagoda.units import NOT_MEASURED, format_decimal, format_nbytes, format_seconds

LARGE = 1 << 39  # tokens: more than anybody has


def tables(plan: Plan) -> Iterator[RenderableType]:
    """Model, formats, memory, users, savings, pages and time, one after the other, with what is to be noted."""
    yield _heading(plan)
    if plan.main.groups or plan.model.state_nbytes:
        yield _groups(plan)
    yield _formats(plan)
    if plan.budget is not None:
        yield _memory(plan)
    if plan.effects:
        yield _effects(plan)
    if plan.main.groups:
        yield _waste(plan)
    if plan.main.decode or plan.prefill is not None:
        yield _time(plan)
    notes = [*notes_of(plan)]
    if notes:
        yield Group("", *(Text(f"- {note}") for note in notes))


def compact_count(count: int) -> str:
    """70553706496 -> '70.6 G'."""
    return format_decimal(count, "").strip()


def _heading(plan: Plan) -> RenderableType:
    model, machine = plan.model, plan.machine
    weights = "weights unknown: give --weights 14GiB"
    if model.weight_nbytes is not None:
        weights = f"{format_nbytes(model.weight_nbytes)} of weights{f' {model.weights_are}' * bool(model.weights_are)}"
    if model.parameters is not None:
        active = model.active_parameters if model.active_parameters != model.parameters else None
        weights += f" ({compact_count(model.parameters)} parameters"
        # What is looked up is not active either; say it where experts make the difference.
        weights += f", {compact_count(active)} active)" if active and active < 0.8 * model.parameters else ")"
    said = f"{model.name} in {model.dtype}: {weights}"
    if model.weights_are:
        said = f"{model.name}: {weights}, computed with in {model.dtype}"
    lines = [Text(said, style="bold"), Text(model.source, style="dim")]
    if machine.memory_nbytes is not None or machine.bandwidth is not None:
        lines.append(Text(_machine_line(plan)))
    if plan.options.machine is not None:
        lines.append(Text(machine.source, style="dim"))
    return Group(*lines)


def _machine_line(plan: Plan) -> str:
    machine, gpus = plan.machine, plan.options.gpus
    figures = [] if machine.memory_nbytes is None else [f"{format_nbytes(machine.memory_nbytes)}"]
    figures += [] if machine.bandwidth is None else [format_decimal(machine.bandwidth, "B/s")]
    flops = machine.flops_in(plan.model.dtype)
    figures += [] if flops is None else [format_decimal(flops, "FLOPS")]
    return f"{f'{gpus} x ' if gpus > 1 else ''}{machine.name}: {', '.join(figures)}"


def _groups(plan: Plan) -> RenderableType:
    rows = [("layers", "heads", "a token", f"{plan.context:,} tokens", "pages of")]
    for group in plan.main.groups:
        kept = "" if group.context_tokens == plan.context else f" ({group.context_tokens:,} kept)"
        layers = f"{group.num_layers} {group.name}"
        sizes = (format_nbytes(group.nbytes_per_token), f"{format_nbytes(group.context_nbytes)}{kept}")
        rows.append((layers, group.heads, *sizes, format_nbytes(group.page_nbytes)))
    if plan.model.state_nbytes:
        rows.append((f"{plan.model.num_states} recurrent", "", "-", format_nbytes(plan.model.state_nbytes), ""))
    return _table(f"What a user leaves behind, in {plan.main.label}", rows)


def _formats(plan: Plan) -> RenderableType:
    """A line for each format, with as much as there is to tell."""
    context, users, has_memory = plan.context, plan.users, plan.budget is not None
    heading = ["pages in", "a token", f"{_users(users)} of {context:,}", "equals weights at"]
    heading += ["longest context", "users fit", "run at once"] if has_memory else []
    rows = [tuple(heading)]
    for each in plan.formats if plan.main.groups else plan.formats[:1]:
        if each.obstacle is not None:
            rows.append((each.name, "cannot be", *[""] * (len(heading) - 2)))
            continue
        token = format_nbytes(each.nbytes_per_token)
        if each.nbytes_per_encoder_token:
            token += f" + {format_nbytes(each.nbytes_per_encoder_token)}"
        equal = NOT_MEASURED if plan.model.weight_nbytes is None else _tokens(each.overtakes_at)
        cells = [_format_name(each), token, format_nbytes(each.users_nbytes), equal]
        cells += [_tokens(each.longest_context), f"{each.users_by_memory:,}", f"{each.users:,}"] if has_memory else []
        rows.append(tuple(cells))
    return _table("Formats", rows)


def _format_name(each: FormatPlan) -> str:
    return each.name if each.name == each.label else f"{each.name} ({each.label})"


def _users(count: int) -> str:
    return f"{count:,} user{'s' * (count != 1)}"


def _tokens(count: int | None) -> str:
    return "never" if count is None or count > LARGE else f"{count:,}"


def _memory(plan: Plan) -> RenderableType:
    budget = plan.budget
    assert budget is not None
    rows = [("", "")]
    if budget.memory_nbytes is not None:
        rows.append(("memory", format_nbytes(budget.memory_nbytes)))
        rows.append(("weights", format_nbytes(budget.weight_nbytes)))
        rows.append(("activations and logits of a step, at most", format_nbytes(budget.activation_nbytes)))
    rows.append(("left for the cache", format_nbytes(budget.cache_nbytes)))
    memory = plan.main.memory
    for geometry, num_pages in memory.pools if memory else ():
        name, nbytes = geometry.group.name, format_nbytes(num_pages * geometry.page_nbytes)
        rows.append((f"  {num_pages:,} pages of {geometry.page_tokens} tokens, {name}", nbytes))
        if memory is not None and (summary := num_pages * memory.summary_nbytes(geometry)):
            rows.append(("    what they are chosen by", format_nbytes(summary)))
    if memory is not None and memory.states is not None:
        rows.append((f"  {memory.states.num_slots:,} recurrent states", format_nbytes(memory.states.nbytes)))
    return _table(f"Memory{' of each device' if plan.options.gpus > 1 else ''}, as the engine divides it", rows)


def _effects(plan: Plan) -> RenderableType:
    rows = [("", "counted", "with", "without", "times")]
    for each in plan.effects:
        sizes = (format_nbytes(each.nbytes), format_nbytes(each.naive_nbytes))
        rows.append((each.name, each.what, *sizes, f"{each.factor:.2f}"))
    return _table(f"What keeps a user of {plan.context:,} tokens small, in {plan.model.dtype}", rows)


def _waste(plan: Plan) -> RenderableType:
    rows = [("tokens per page", "expected", "at worst", "expected of a user")]
    for each in plan.waste:
        mark = " *" if each.page_tokens == plan.options.block_size else ""
        sizes = (format_nbytes(each.expected_nbytes), format_nbytes(each.worst_nbytes))
        rows.append((f"{each.page_tokens}{mark}", *sizes, f"{each.share:.2%}"))
    return _table("What the last page of a user leaves empty", rows)


def _time(plan: Plan) -> RenderableType:
    rows = [("decode step", "weights read", "cache read", "at least", "at most, all users")]
    for each in plan.main.decode:
        sizes = (format_nbytes(each.weight_nbytes), format_nbytes(each.cache_nbytes))
        rate = f"{each.tokens_per_second:,.0f} tokens/s"
        rows.append((_users(each.users), *sizes, format_seconds(each.seconds), rate))
    prefill = plan.prefill
    if prefill is not None:
        share = prefill.attention_flops / (prefill.weight_flops + prefill.attention_flops)
        work = (f"prefill of {prefill.num_computed:,}", f"{share:.0%} attention", "")
        rate = f"{prefill.num_computed / prefill.seconds:,.0f} tokens/s"
        rows.append((*work, format_seconds(prefill.seconds), rate))
    return _table("Least time, by bandwidth and arithmetic", rows)


def notes_of(plan: Plan) -> Iterator[str]:
    """Sentences for what no table says."""
    yield from plan.model.notes
    yield from _memory_notes(plan)
    yield from _users_notes(plan)
    yield from pool_notes(plan)
    yield from _reading_notes(plan)
    if plan.options.gpus > 1:
        shard = plan.sharding
        token = format_nbytes(shard.nbytes_per_token)
        copies = f", which keep {shard.copies:.3g} copies of it in all" if shard.copies > 1 else ""
        yield f"A token takes {token} on each of {shard.gpus} devices{copies}."
        yield from shard.notes
    for each in plan.formats:
        if each.obstacle is not None:
            yield f"{each.name}: {each.obstacle}"
    if plan.model.max_model_len is not None and plan.main.limited_by == "the model":
        yield f"The longest context is the model's own, {plan.model.max_model_len:,} tokens."


def _memory_notes(plan: Plan) -> Iterator[str]:
    """What all of it takes, for who has no machine yet."""
    if plan.model.weight_nbytes is None:
        yield "The weights of this family are not counted: give --weights 14GiB for what depends on them."
        return
    gpus = plan.options.gpus
    taken = plan.model.weight_nbytes + gpus * plan.activations.nbytes + plan.main.users_nbytes
    device = f", {format_nbytes(taken / gpus)} on each of {gpus} devices" if gpus > 1 else ""
    load = f"{_users(plan.users)} of {plan.context:,} tokens"
    yield f"Weights, activations and the cache of {load} take {format_nbytes(taken)} in all{device}."
    if plan.budget is None or plan.budget.memory_nbytes is None:
        return
    if plan.options.memory is None and any(each.name == plan.machine.name for each in PRESETS):
        memory = format_nbytes(plan.budget.memory_nbytes)
        yield f"{memory} is what the maker states: what a driver holds of it is not taken off; --memory gives less."
    if gpus == 1:
        usual = f"{DEFAULT_KV_CACHE_SHARE:.0%} of free memory, at most {format_nbytes(DEFAULT_KV_CACHE_NBYTES)}"
        yield f"Tell the engine --kv-cache-memory-bytes {plan.budget.cache_nbytes}; by itself it takes {usual}."


def _reading_notes(plan: Plan) -> Iterator[str]:
    """What is read of pages, and what it takes to choose them."""
    reading = plan.options.reading
    choosing = [each for each in plan.main.geometries if each.summary_nbytes]
    if reading is None:
        return
    if not choosing:
        yield "No layer of this model reads a part of its pages: the engine refuses sparse_attention."
        return
    num_layers = sum(len(each.slots[reading.dense_layers :]) for each in choosing)
    share = sum(each.summary_nbytes for each in choosing) / sum(each.page_nbytes for each in choosing)
    budget = min(reading.most_pages * reading.page_tokens, plan.context)
    yield (
        f"A token that is generated reads {budget:,} of {plan.context:,} tokens in {num_layers} layers; to choose them "
        f"takes {share:.1%} more memory for their pages. How much is lost depends on the text."
    )


def _users_notes(plan: Plan) -> Iterator[str]:
    main, options = plan.main, plan.options
    if main.users is None:
        return
    start = plan.context - plan.output_tokens
    yield f"A user has a prompt of {start:,} tokens and gets {plan.output_tokens:,}; nobody is sent back for another."
    if options.policy is not None:
        yield "A prompt is kept whole while it is computed, but by streaming. How much is lost depends on the text."
    if options.policy is not None and options.policy.repeated_tokens is not None:
        yield f"{options.policy.name} repeats each prompt: that takes at least as long again, and room for a chunk."
    if main.users < (main.users_by_memory or 0):
        yield f"The engine runs {options.max_num_seqs:,} at once unless max_num_seqs is raised."
    if plan.users > (main.users_by_memory or 0):
        fitting = _users(main.users_by_memory or 0)
        yield f"There is room for {fitting} of {plan.context:,} tokens, not for {plan.users:,}."
    if options.shared_prefix:
        shared = f"{options.shared_prefix:,} tokens that all prompts begin with are kept once"
        yield f"{shared}: without that, {main.users_without_sharing:,} would fit."


def _table(title: str, rows: Sequence[tuple[str, ...]]) -> RenderableType:
    """The first row is the heading; numbers are on the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    texts = {0, 1} if rows[0][1:2] == ("counted",) else {0}
    for column, name in enumerate(rows[0]):
        justify: Literal["left", "right"] = "left" if column in texts else "right"
        table.add_column(escape(name), justify=justify, header_style="dim", no_wrap=column == 0)
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    table.show_header = any(rows[0])
    return Group("", table)
