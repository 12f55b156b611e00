"""What a model's attention calls need from the cache, learned by running it once without weights.

Knows which calls pages can serve: causal self-attention over all tokens, a window or a chunk, and cross-attention to
all that an encoder made of its input. Everything else is refused by name. Does not know the values of weights;
`selftest.py` catches what shapes and masks cannot show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from pagoda.errors import CorruptCheckpointError, UnsupportedModelError
from pagoda.kernels.base import AttentionRule, AttentionUse
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.base import Layout
from pagoda.layouts.cross import CrossLayout
from pagoda.layouts.latent import LatentLayout
from pagoda.layouts.spec import CacheSpec, Reach, group_layers
from pagoda.models.build import Build, build_network
from pagoda.models.decoder_config import decoder_config, num_decoder_layers
from pagoda.models.encoder import check_encoder
from pagoda.models.probe import ENCODER_PROBE_TOKENS, PROBE_NAME, PROBE_TOKENS, Call, MaskNote, Recording, record_calls
from pagoda.planning.spec import KINDS_WITHOUT_CACHE, LAYER_KINDS, STATE_KINDS

_REACHES = {
    frozenset({"causal_mask_function"}): Reach.FULL,
    frozenset({"causal_mask_function", "sliding_window_overlay", "and_masks"}): Reach.SLIDING,
    frozenset({"causal_mask_function", "chunked_overlay", "and_masks"}): Reach.CHUNKED,
    frozenset({"bidirectional_mask_function"}): Reach.ENCODER,
}


@dataclass(frozen=True)
class Discovered:
    """The cache a model needs and, per attention call in call order, by which rule it attends and with what besides.

    `projections` names the linear layer that takes what a call gives; None where there is not just one. `siblings`
    names linear layers that are given the same rows, and may give parts of wider ones.
    """

    spec: CacheSpec
    rules: tuple[AttentionRule, ...]
    sinks: tuple[bool, ...]
    biases: tuple[bool, ...]
    projections: tuple[str | None, ...]
    siblings: tuple[tuple[str, ...], ...] = ()

    @property
    def uses(self) -> list[AttentionUse]:
        """The same, call by call."""
        return [AttentionUse(*use) for use in zip(self.rules, self.sinks, self.biases, strict=True)]


def discover(config: Any, build: Build = build_network) -> Discovered:
    """Find the attention calls of the model that `build` makes of `config`, or say why it cannot use pages."""
    check_config(config)
    recording = _record(config, build)
    calls = recording.calls
    for ordinal, call in enumerate(calls):
        _check_call(config, ordinal, call)
    rules = tuple(_rule(call) for call in calls)
    layers = [(rule.reach, rule.span, _layout(call)) for rule, call in zip(rules, calls, strict=True)]
    spec = group_layers(layers, [_source(calls, ordinal) for ordinal in range(len(calls))])
    spec = replace(spec, states=recording.states.layouts())
    return Discovered(
        spec,
        rules,
        tuple(call.has_sinks for call in calls),
        tuple(call.has_distance_biases for call in calls),
        tuple(_projection(call, recording.takers.get(ordinal, set())) for ordinal, call in enumerate(calls)),
        recording.siblings,
    )


def check_config(config: Any) -> None:
    """Refuse what the configuration alone rules out."""
    if config.is_encoder_decoder:
        check_encoder(config)
    kinds = set(_layer_kinds(config)) - {*LAYER_KINDS, *STATE_KINDS, *KINDS_WITHOUT_CACHE}
    if kinds:
        raise UnsupportedModelError(
            f"{config.model_type} has layers of kind {', '.join(sorted(kinds))}; Pagoda knows full, sliding and "
            "chunked attention and recurrent state."
        )


def _layer_kinds(config: Any) -> list[str]:
    return list(getattr(decoder_config(config), "layer_types", None) or ())


def _record(config: Any, build: Build) -> Recording:
    """One forward, if its attention calls and recurrent states are all that the model remembers its tokens by."""
    try:
        recording = record_calls(config, build)
    except CorruptCheckpointError:
        raise
    except Exception as error:
        if error.args == (PROBE_NAME,):  # looked up among the family's own attention classes
            raise _own_attention(config, None) from error
        raise UnsupportedModelError(
            f"transformers cannot build a {config.model_type} model here: {_first_line(error)}"
        ) from error
    if isinstance(recording.failure, CorruptCheckpointError):
        raise recording.failure
    _check_recurrence(config, recording)
    num_states = len(recording.states)
    if not recording.calls and not num_states:
        raise _own_attention(config, recording.failure) from recording.failure
    if recording.failure:
        raise UnsupportedModelError(
            f"{config.model_type} does not run with Pagoda's attention and recurrent state: "
            f"{_first_line(recording.failure)}"
        ) from recording.failure
    num_layers = num_decoder_layers(config)
    least = _least_calls(config)
    if least is None or len(recording.calls) + num_states < least:
        kept = f" and keeps {num_states} recurrent states" if num_states else ""
        raise UnsupportedModelError(
            f"{config.model_type} attends {len(recording.calls)} times{kept} but has "
            f"{num_layers or 'no stated number of'} layers: some keep something other than keys and values of every "
            "token."
        )
    return recording


def _least_calls(config: Any) -> int | None:
    """How many attention calls and states there must be at least, if the configuration tells."""
    num_layers = num_decoder_layers(config)
    if num_layers is None:
        return None
    num_layers -= sum(kind in KINDS_WITHOUT_CACHE for kind in _layer_kinds(config))
    return 2 * num_layers if config.is_encoder_decoder else num_layers


def _own_attention(config: Any, failure: Exception | None) -> UnsupportedModelError:
    stopped = f" (its forward stopped at: {_first_line(failure)})" if failure else ""
    return UnsupportedModelError(
        f"{config.model_type} never calls the attention interface of transformers{stopped}: it computes attention in "
        "its own code, and its keys and values cannot reach the pages."
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _check_recurrence(config: Any, recording: Recording) -> None:
    """Recurrent layers that are not known would restart at every step and mix sequences, without any error."""
    for name, module in recording.states.unknown:
        raise UnsupportedModelError(
            f"{config.model_type} keeps recurrent state in a way of its own ({name or 'the model'}, a "
            f"{type(module).__name__})."
        )


def _check_call(config: Any, ordinal: int, call: Call) -> None:
    reason = _reason_against(call, config.is_encoder_decoder)
    if reason:
        raise UnsupportedModelError(
            f"{config.model_type}, attention call {ordinal} ({type(call.module).__name__}): {reason}."
        )


def _reason_against(call: Call, has_encoder: bool) -> str | None:
    return _shape_reason(call, has_encoder) or _score_reason(call) or (None if call.own_reach else _mask_reason(call))


def _shape_reason(call: Call, has_encoder: bool) -> str | None:
    num_keys = ENCODER_PROBE_TOKENS if has_encoder and call.is_cross else PROBE_TOKENS
    if call.query.shape[2] != PROBE_TOKENS or call.key.shape[2] != num_keys:
        return "its queries and keys are not the tokens of the step (compressed keys)"
    if call.query.shape[1] % call.key.shape[1]:
        return f"{call.query.shape[1]} query heads do not share {call.key.shape[1]} KV heads evenly"
    return None


def _score_reason(call: Call) -> str | None:
    if call.has_position_bias:
        return "it adds a position bias to its scores, which Pagoda's kernels do not have"
    if isinstance(call.scale, torch.Tensor):
        return "its scale is a tensor"
    return None


def _mask_reason(call: Call) -> str | None:
    mask = call.mask
    if mask is None and call.is_cross:
        return None
    if not isinstance(mask, MaskNote):
        return "it does not take its mask from transformers, so which tokens it attends to is unknown"
    if mask.overlays not in _REACHES or (_REACHES[mask.overlays] is Reach.ENCODER) != call.is_cross:
        return f"it attends by {', '.join(sorted(mask.overlays))}; only causal masks, windows and chunks are known"
    if mask.span is not None and mask.span < 1:
        return f"its window is {mask.span} tokens, so that a token would not even attend to itself"
    return None


def _rule(call: Call) -> AttentionRule:
    scale = call.query.shape[-1] ** -0.5 if call.scale is None else float(call.scale)
    reach, span = call.own_reach or _reach(call)
    return AttentionRule(scale, reach, span, call.soft_cap, call.slopes)


def _reach(call: Call) -> tuple[Reach, int | None]:
    return (Reach.ENCODER, None) if call.is_cross else (_REACHES[call.mask.overlays], call.mask.span)


def _layout(call: Call) -> Layout:
    if call.has_latents:
        return LatentLayout(call.key.shape[-1], call.value.shape[-1])
    layout = CrossLayout if call.is_cross else AttentionLayout
    return layout(call.key.shape[1], call.key.shape[-1], call.value.shape[-1])


def _projection(call: Call, takers: set[str]) -> str | None:
    """What attention gives of latents becomes values first, in code of the family's adapter."""
    return next(iter(takers)) if len(takers) == 1 and not call.has_latents else None


def _source(calls: list[Call], ordinal: int) -> int | None:
    """The earlier call whose keys and values this one reads: it received the very same tensors."""
    call = calls[ordinal]
    return next(
        (i for i, other in enumerate(calls[:ordinal]) if other.key is call.key and other.value is call.value), None
    )
