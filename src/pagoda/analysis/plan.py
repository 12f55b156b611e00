"""How many users fit, how long their contexts may be, and how fast a step can be: `pagoda.plan(...)`.

All bytes are asked of what the engine itself starts with: the layer groups of the model, the geometry of its pages, the
memory plan and what a sequence takes of it. Loads nothing but a config.json and the headers of weights. Only data comes
out; `commands/plan.py` prints it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pagoda.analysis.activations import activations
from pagoda.analysis.answer import Budget, ModelSize, PageWaste, Plan, Sharding
from pagoda.analysis.effects import effects
from pagoda.analysis.floors import PrefillFloor, attention_flops, is_cross
from pagoda.analysis.machines import Machine
from pagoda.analysis.options import USUAL_OUTPUT_TOKENS, PlanOptions, plan_options
from pagoda.analysis.source import Described, describe, stretched
from pagoda.analysis.storage import FormatPlanner, Setting
from pagoda.checkpoint.failures import model_errors
from pagoda.errors import ConfigError
from pagoda.formats.page import PageGeometry
from pagoda.formats.state import StateGeometry
from pagoda.planning.page_formats import choose_geometries
from pagoda.planning.text_config import named_fields
from pagoda.planning.users import Load
from pagoda.units import format_nbytes

PAGE_SIZES = (16, 32, 64, 128)
USUAL_CONTEXT = 8192  # where a model sets no limit


def plan(model: str | Path, **options: Any) -> Plan:
    """Plan for `model`, a folder, a config.json or the name of a shipped configuration; options are of `PlanOptions`.

    Raises ModelError for a model that cannot be told of, and ConfigError for memory that is too small or a bad option.
    """
    return make_plan(model, plan_options(**options))


def make_plan(model: str | Path, options: PlanOptions) -> Plan:
    """`plan` for options that are checked already."""
    described = stretched(describe(model, options.dtype), options.context)
    with model_errors(f"The configuration of {described.name}"), named_fields(described.text):
        return _answer(described, options)


def _answer(described: Described, options: PlanOptions) -> Plan:
    machine = options.device()
    setting = _setting(described, machine, options)
    planner = FormatPlanner(described, setting)
    formats = tuple(planner.plan(name, is_main=not index) for index, name in enumerate(options.kv_cache_dtype))
    own = choose_geometries(described.facts, options.engine_config())
    load = setting.load
    return Plan(
        model=_model_size(described, setting),
        machine=machine,
        options=options,
        context=load.num_tokens,
        users=setting.users,
        output_tokens=load.num_generated,
        encoder_tokens=load.num_encoded,
        formats=formats,
        states=StateGeometry(described.facts.spec.states, described.facts.number_nbytes),
        effects=effects(described, own, _state_nbytes(described), load.num_tokens, load.num_encoded),
        waste=tuple(_waste(described, options, size, formats[0].context_nbytes) for size in _page_sizes(options)),
        activations=setting.activations,
        sharding=_sharding(described, setting),
        budget=setting.budget,
        prefill=_prefill(described, setting),
    )


def _setting(model: Described, machine: Machine, options: PlanOptions) -> Setting:
    load = _load(model, options)
    weights = options.weight_nbytes or model.weight_nbytes
    step = max(options.max_num_batched_tokens, load.num_encoded)
    needed = activations(model, step, options.max_num_seqs)
    budget = _budget(model, machine, options, weights, needed.nbytes)
    return Setting(options, machine, load, options.users or 1, weights, needed, budget)


def _load(model: Described, options: PlanOptions) -> Load:
    facts = model.facts
    context = options.context or facts.max_model_len or USUAL_CONTEXT
    output = options.output_tokens or max(min(USUAL_OUTPUT_TOKENS, context // 2), 1)
    if output > context or options.shared_prefix > context:
        raise ConfigError(f"context is {context}; output_tokens and shared_prefix are parts of it: give less of them.")
    encoded = 0
    if facts.encoder is not None:
        encoded = options.encoder_tokens or facts.encoder.max_tokens or context
    elif options.encoder_tokens:
        raise ConfigError(f"{model.name} has no encoder; drop encoder_tokens.")
    return Load(context, output, options.shared_prefix, encoded)


def _budget(
    model: Described, machine: Machine, options: PlanOptions, weights: int | None, activation_nbytes: int
) -> Budget | None:
    """What one device has for the cache. ConfigError if there is nothing left for it."""
    gpus = options.gpus
    if options.kv_cache_memory_bytes is not None:
        return Budget(None, -(-(weights or 0) // gpus), activation_nbytes, options.cache_nbytes)
    if machine.memory_nbytes is None:
        return None
    if weights is None:
        raise ConfigError(
            f"The weights of {model.text.get('model_type')} are unknown, as its family is not counted; say how large "
            "they are, as in --weights 14GiB."
        )
    own = -(-weights // gpus)
    left = machine.memory_nbytes - own - activation_nbytes
    if left <= 0:
        room = machine.memory_nbytes - activation_nbytes
        more = f"--gpus {weights // room + 1}" if room > 0 else "more memory"
        raise ConfigError(
            f"{model.name} does not fit: a device has {format_nbytes(machine.memory_nbytes)}, {format_nbytes(-left)} "
            f"less than its weights ({format_nbytes(own)}) and activations ({format_nbytes(activation_nbytes)}) take, "
            f"with nothing for the cache; try {more}, or weights in fewer bytes (--weights)."
        )
    return Budget(machine.memory_nbytes, own, activation_nbytes, left)


def _model_size(model: Described, setting: Setting) -> ModelSize:
    count, facts = model.count, model.facts
    return ModelSize(
        name=model.name,
        source=model.source,
        dtype=facts.dtype,
        parameters=count.total if count else None,
        active_parameters=count.active if count else None,
        weight_nbytes=setting.weight_nbytes,
        max_model_len=facts.max_model_len,
        num_states=len(facts.spec.states),
        state_nbytes=_state_nbytes(model),
        notes=model.notes,
    )


def _state_nbytes(model: Described) -> int:
    return StateGeometry(model.facts.spec.states, model.facts.number_nbytes).page_nbytes


def _page_sizes(options: PlanOptions) -> list[int]:
    return sorted({*PAGE_SIZES, options.block_size})


def _waste(model: Described, options: PlanOptions, page_tokens: int, context_nbytes: int) -> PageWaste:
    """Lengths are taken to end anywhere in a page, each place as likely."""
    config = replace(options.engine_config(kv_cache_dtype=options.kv_cache_dtype[0]), block_size=page_tokens)
    pages: list[PageGeometry] = [each for each in choose_geometries(model.facts, config) if not is_cross(each)]
    worst = sum(each.nbytes_per_token * (page_tokens - 1) for each in pages)
    return PageWaste(page_tokens, worst / 2, round(worst), worst / 2 / context_nbytes if context_nbytes else 0.0)


def _sharding(model: Described, setting: Setting) -> Sharding:
    gpus, config = setting.options.gpus, setting.options.engine_config(kv_cache_dtype=setting.options.kv_cache_dtype[0])
    whole = sum(each.nbytes_per_token for each in choose_geometries(model.facts, config))
    part = sum(each.nbytes_per_token for each in choose_geometries(setting.part_of(model.facts), config))
    notes = []
    planes = [plane for g in model.facts.spec.groups for layout in g.layouts for plane in layout.planes]
    if gpus > 1 and any(plane.value_width for plane in planes):
        notes.append(f"Latents are read by every head: each of {gpus} devices keeps all of them.")
    elif gpus > 1 and any(plane.num_heads % gpus for plane in planes):
        counts = "/".join(map(str, sorted({plane.num_heads for plane in planes})))
        notes.append(f"{counts} KV heads cannot be divided evenly by {gpus}: some devices keep copies.")
    weights = None if setting.weight_nbytes is None else -(-setting.weight_nbytes // gpus)
    return Sharding(gpus, part * gpus / whole if whole else 1.0, weights, part, tuple(notes))


def _prefill(model: Described, setting: Setting) -> PrefillFloor | None:
    """Of a prompt as long as the context, behind the shared prefix; the head computes its last row alone."""
    flops, load = setting.machine.flops_in(model.facts.dtype), setting.load
    if model.count is None or flops is None:
        return None
    count = model.count
    computed = load.num_tokens - min(load.num_shared, load.num_tokens - 1)
    weight_flops = 2 * ((count.active - count.head) * computed + count.head + count.encoder * load.num_encoded)
    attention = attention_flops(model, load)
    seconds = (weight_flops + attention) / (flops * setting.options.gpus)
    return PrefillFloor(load.num_tokens, computed, weight_flops, attention, seconds)
