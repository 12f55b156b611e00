"""What each way to keep less is worth: a sequence's bytes with it, beside the count that knows nothing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pagoda.analysis.floors import is_cross, kept_nbytes, load_nbytes
from pagoda.analysis.source import Described
from pagoda.formats.page import PageGeometry
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import Reach
from pagoda.planning.spec import KV_HEADS, layer_kinds, query_heads
from pagoda.planning.text_config import first
from pagoda.planning.users import Load


@dataclass(frozen=True)
class Effect:
    """`nbytes` instead of `naive_nbytes`, and what is counted."""

    name: str
    what: str
    nbytes: int
    naive_nbytes: int

    @property
    def factor(self) -> float:
        """How many times as much the naive count is."""
        return self.naive_nbytes / self.nbytes if self.nbytes else float("inf")


def naive_nbytes(config: Mapping[str, Any], num_tokens: int, number_nbytes: int) -> int | None:
    """What many planners take: 2 x layers x KV heads x head width x bytes x tokens, for every model alike.

    None where a configuration has no heads to count.
    """
    heads = next((config[name] for name in ("num_attention_heads", "n_head", "num_heads") if config.get(name)), None)
    if heads is None:
        return None
    layers = len(layer_kinds(config))
    grouped = next((config[name] for name in KV_HEADS if config.get(name)), heads)
    width = config.get("head_dim") or first(config, "hidden_size", "n_embd", "d_model") // heads
    return int(2 * layers * grouped * width * number_nbytes * num_tokens)


def effects(model: Described, geometries: Sequence[PageGeometry], state_nbytes: int, load: Load) -> tuple[Effect, ...]:
    """Of everything that the model has, in pages of its main format; for one sequence of `load`."""
    num_tokens, num_encoded = load.num_tokens, load.num_encoded
    own = [each for each in geometries if not is_cross(each)]
    found = [_grouped_heads(model, own, num_tokens), _windows(own, num_tokens), _latents(model, own, num_tokens)]
    found.append(_states(model, own, state_nbytes, num_tokens))
    number_nbytes = model.facts.number_nbytes
    naive = naive_nbytes(model.text, num_tokens, number_nbytes)
    kept = kept_nbytes(own, num_tokens, num_encoded) + state_nbytes
    if naive is not None:
        found.append(Effect("all in all", "2 x layers x KV heads x width for any model", kept, naive))
    if load.policy is not None:
        less = load_nbytes(own, load) + state_nbytes
        found.append(Effect("compression", f"what {load.policy.name} keeps", less, kept))
    return tuple(each for each in found if each is not None)


def _grouped_heads(model: Described, own: Sequence[PageGeometry], num_tokens: int) -> Effect | None:
    """Fewer heads of keys and values than of queries."""
    planes = [plane for each in own for layout in each.group.layouts for plane in layout.planes]
    if not own or any(plane.value_width for plane in planes):
        return None
    heads = query_heads(model.text)
    grouped = {plane.num_heads for plane in planes}
    if grouped == {heads}:
        return None
    kept = kept_nbytes(own, num_tokens, 0)
    full = kept_nbytes([_with_heads(each, heads) for each in own], num_tokens, 0)
    return Effect("grouped heads", f"{'/'.join(map(str, sorted(grouped)))} KV heads for {heads} of queries", kept, full)


def _with_heads(geometry: PageGeometry, num_heads: int) -> PageGeometry:
    """Pages of the same layers, if each query head had keys and values of its own."""
    layouts = tuple(
        AttentionLayout(num_heads, layout.planes[0].width, layout.planes[-1].width) for layout in geometry.group.layouts
    )
    return replace(geometry, group=replace(geometry.group, layouts=layouts))


def _windows(own: Sequence[PageGeometry], num_tokens: int) -> Effect | None:
    """Layers that keep their last tokens alone."""
    windowed = [each for each in own if each.group.span is not None]
    if not windowed:
        return None
    whole = [replace(each, group=replace(each.group, reach=Reach.FULL, span=None)) for each in windowed]
    layers = sum(len(each.group.layouts) for each in windowed)
    names = ", ".join(each.group.name for each in windowed)
    return Effect(
        "windows", f"{layers} layers: {names}", kept_nbytes(windowed, num_tokens, 0), kept_nbytes(whole, num_tokens, 0)
    )


def _latents(model: Described, own: Sequence[PageGeometry], num_tokens: int) -> Effect | None:
    """One latent for all heads instead of keys and values for each."""
    sizes = model.text
    if not sizes.get("kv_lora_rank") or not own:
        return None
    heads = query_heads(sizes)
    key_width = sizes["qk_nope_head_dim"] + sizes["qk_rope_head_dim"]
    layout = AttentionLayout(heads, key_width, sizes["v_head_dim"])
    whole = [replace(g, group=replace(g.group, layouts=(layout,) * len(g.group.layouts)), others=()) for g in own]
    what = f"{sizes['kv_lora_rank']} + {sizes['qk_rope_head_dim']} numbers for {heads} heads"
    return Effect("latents", what, kept_nbytes(own, num_tokens, 0), kept_nbytes(whole, num_tokens, 0))


def _states(model: Described, own: Sequence[PageGeometry], state_nbytes: int, num_tokens: int) -> Effect | None:
    """States of recurrent layers, if those kept keys and values as the attending ones do."""
    count, attending = len(model.facts.spec.states), sum(len(each.group.layouts) for each in own)
    if not count or not attending:
        return None
    naive = kept_nbytes(own, num_tokens, 0) * count // attending
    return Effect("recurrent states", f"{count} layers keep a state of one size", state_nbytes, naive)
