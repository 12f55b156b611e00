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
from pagoda.analysis.source import Described, describe, quantized, stretched
from pagoda.analysis.storage import FormatPlanner, Setting
from pagoda.checkpoint.failures import model_errors
from pagoda.errors import ConfigError
from pagoda.formats.page import PageGeometry
from pagoda.formats.state import StateGeometry
from pagoda.planning.page_formats import choose_geometries
from pagoda.planning.spec import query_heads
from pagoda.planning.text_config import named_fields
from pagoda.planning.users import Load
from pagoda.units import format_nbytes

PAGE_SIZES = (16, 32, 64, 128)
USUAL_DEVICES = 64
USUAL_CONTEXT = 8192  # where a model sets no limit


def plan(model: str | Path, **options: Any) -> Plan:
    """Plan for `model`, a folder, a config.json or the name of a shipped configuration; options are of `PlanOptions`.

    Raises ModelError for a model that cannot be told of, and ConfigError for memory that is too small or a bad option.
    """
    return make_plan(model, plan_options(**options))


def make_plan(model: str | Path, options: PlanOptions) -> Plan:
    """`plan` for options that are checked already."""
    described = quantized(describe(model, options.dtype), options.quantization)
    described = stretched(described, options.context, options.is_endless)
    with model_errors(f"The configuration of {described.name}"), named_fields(described.text):
        try:
            return _answer(described, options)
        except DoesNotFitError as error:
            raise ConfigError(f"{error} {_remedy(described, options)}") from error


class DoesNotFitError(ConfigError):
    """Weights and activations take all memory of a device, and more."""


def _remedy(model: Described, options: PlanOptions) -> str:
    """What to try where a device has too little: the fewest devices that divide the heads and leave room for a user."""
    more = (replace(options, gpus=gpus) for gpus in _divisors(model) if gpus > options.gpus)
    enough = next((each.gpus for each in more if _has_room(model, each)), None)
    devices = f"--gpus {enough}" if enough else "more memory"
    note = f" {model.weights_note}" if model.weights_note and options.weights is None else ""
    return f"Try {devices}, or weights in fewer bytes (--weights).{note}"


def _has_room(model: Described, options: PlanOptions) -> bool:
    try:
        return bool(_answer(model, options).main.users_by_memory)
    except ConfigError:
        return False


def _divisors(model: Described) -> list[int]:
    """Numbers of devices that divide the query heads, or whatever is usual where no layer attends."""
    heads = query_heads(model.text) if model.facts.spec.groups else USUAL_DEVICES
    return [count for count in range(1, heads + 1) if not heads % count]


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
        effects=effects(described, own, _state_nbytes(described), load),
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
    most = model.own_max_model_len if options.is_endless else None
    return Load(context, output, options.shared_prefix, encoded, options.policy, most)


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
        raise DoesNotFitError(
            f"{model.name} does not fit: a device has {format_nbytes(machine.memory_nbytes)}, {format_nbytes(-left)} "
            f"less than its weights ({format_nbytes(own)}) and activations ({format_nbytes(activation_nbytes)}) take, "
            "with nothing for the cache."
        )
    return Budget(machine.memory_nbytes, own, activation_nbytes, left)


def _model_size(model: Described, setting: Setting) -> ModelSize:
    count, facts = model.count, model.facts
    is_given = setting.options.weights is not None
    about_weights = (model.weights_note,) if model.weights_note and not is_given else ()
    return ModelSize(
        name=model.name,
        source=model.source,
        dtype=facts.dtype,
        parameters=count.total if count else None,
        active_parameters=count.active if count else None,
        weight_nbytes=setting.weight_nbytes,
        weights_are="as given" if is_given else model.weights_are,
        max_model_len=model.own_max_model_len,
        num_states=len(facts.spec.states),
        state_nbytes=_state_nbytes(model),
        notes=(*model.notes, *about_weights),
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
    if planes and gpus not in _divisors(model):
        near = ", ".join(f"{count:,}" for count in _divisors(model) if count > 1)
        notes.append(
            f"{query_heads(model.text):,} query heads cannot be divided evenly by {gpus:,}: engines that divide heads "
            f"take {near} devices."
        )
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
    # Of what is left out on the way nothing is counted: less is a floor, too.
    exact = min(load.num_tokens, load.max_exact or load.num_tokens)
    attention = attention_flops(model, replace(load, num_tokens=exact))
    seconds = (weight_flops + attention) / (flops * setting.options.gpus)
    return PrefillFloor(load.num_tokens, computed, weight_flops, attention, seconds)
