"""What a model's attention calls need from the cache, learned by running it once without weights.

Knows which calls pages can serve: causal self-attention over all tokens, a window or a chunk. Everything else is refused
by name. Does not know the values of weights; `selftest.py` catches what shapes and masks cannot show.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pagoda.errors import UnsupportedModelError
from pagoda.kernels.base import AttentionRule
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import CacheSpec, Reach, group_layers
from pagoda.models.probe import PROBE_TOKENS, Call, MaskNote, record_calls

ATTENTION_KINDS = {"full_attention", "sliding_attention", "chunked_attention", "attention", "global", "local"}
_REACHES = {
    frozenset({"causal_mask_function"}): Reach.FULL,
    frozenset({"causal_mask_function", "sliding_window_overlay", "and_masks"}): Reach.SLIDING,
    frozenset({"causal_mask_function", "chunked_overlay", "and_masks"}): Reach.CHUNKED,
}


@dataclass(frozen=True)
class Discovered:
    """The cache a model needs and, per attention call in call order, how it attends and whether it has sinks."""

    spec: CacheSpec
    rules: tuple[AttentionRule, ...]
    sinks: tuple[bool, ...]


def discover(config: Any, build: Callable[..., Any] = AutoModelForCausalLM.from_config) -> Discovered:
    """Find the attention calls of the model that `build` makes of `config`, or say why it cannot use pages."""
    check_config(config)
    try:
        network, calls = record_calls(config, build)
    except Exception as error:
        raise UnsupportedModelError(
            f"{config.model_type} does not run with Pagoda's attention and masks, so its keys and values cannot reach "
            f"the pages ({type(error).__name__}: {error})."
        ) from error
    _check_recurrence(config, network)
    _check_count(config, calls)
    for ordinal, call in enumerate(calls):
        _check_call(config, ordinal, call)
    rules = tuple(_rule(config, call) for call in calls)
    layers = [(rule.reach, rule.span, _layout(call)) for rule, call in zip(rules, calls, strict=True)]
    spec = group_layers(layers, [_source(calls, ordinal) for ordinal in range(len(calls))])
    return Discovered(spec, rules, tuple(call.has_sinks for call in calls))


def check_config(config: Any) -> None:
    """Refuse what the configuration alone rules out."""
    if config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{config.model_type} is an encoder-decoder model; Pagoda has no pages for cross-attention yet."
        )
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ()) - ATTENTION_KINDS
    if kinds:
        raise UnsupportedModelError(
            f"{config.model_type} has layers of kind {', '.join(sorted(kinds))}; Pagoda pages hold full, sliding and "
            "chunked attention only."
        )


def _check_recurrence(config: Any, network: torch.nn.Module) -> None:
    """State-space and linear-attention mixers would restart at every step and mix sequences, without any error."""
    for name, module in network.named_modules():
        if "cache_params" in inspect.signature(module.forward).parameters:
            raise UnsupportedModelError(
                f"{config.model_type} keeps recurrent state in {name} ({type(module).__name__}); Pagoda has no pages for "
                "recurrent state yet."
            )


def _check_count(config: Any, calls: list[Call]) -> None:
    if not calls:
        raise UnsupportedModelError(
            f"{config.model_type} never calls the attention interface of transformers, so its keys and values cannot "
            "reach Pagoda's pages."
        )
    num_layers = config.get_text_config().num_hidden_layers
    if len(calls) < num_layers:
        raise UnsupportedModelError(
            f"{config.model_type} has {num_layers} layers but attends {len(calls)} times: some layers keep something "
            "other than keys and values."
        )


def _check_call(config: Any, ordinal: int, call: Call) -> None:
    reason = _reason_against(call)
    if reason:
        raise UnsupportedModelError(
            f"{config.model_type}, attention call {ordinal} ({type(call.module).__name__}): {reason}."
        )


def _reason_against(call: Call) -> str | None:
    if call.query.shape[2] != PROBE_TOKENS or call.key.shape[2] != PROBE_TOKENS:
        return "its queries and keys are not the tokens of the step (cross-attention or compressed keys)"
    if call.query.shape[1] % call.key.shape[1]:
        return f"{call.query.shape[1]} query heads do not share {call.key.shape[1]} KV heads evenly"
    if call.has_position_bias:
        return "it adds a position bias to its scores, which Pagoda's kernels do not have"
    if isinstance(call.scale, torch.Tensor):
        return "its scale is a tensor"
    if not isinstance(call.mask, MaskNote):
        return "it does not take its mask from transformers, so which tokens it attends to is unknown"
    if call.mask.overlays not in _REACHES:
        return f"it attends by {', '.join(sorted(call.mask.overlays))}; only causal masks, windows and chunks are known"
    return None


def _rule(config: Any, call: Call) -> AttentionRule:
    scale = call.query.shape[-1] ** -0.5 if call.scale is None else float(call.scale)
    return AttentionRule(scale, _REACHES[call.mask.overlays], call.mask.span, call.soft_cap)


def _layout(call: Call) -> AttentionLayout:
    return AttentionLayout(call.key.shape[1], call.key.shape[-1], call.value.shape[-1])


def _source(calls: list[Call], ordinal: int) -> int | None:
    """The earlier call whose keys and values this one reads: it received the very same tensors."""
    call = calls[ordinal]
    return next(
        (i for i, other in enumerate(calls[:ordinal]) if other.key is call.key and other.value is call.value), None
    )
