"""A forward pass that computes nothing and records every attention call: shapes, scale, mask, soft cap, sinks.

The model is built on the meta device (no weights, no arithmetic) with two stand-ins: an attention function that notes
its arguments and a mask function that returns a description instead of a mask. The mask is the witness for windows and
chunks: some families do not pass them as keywords. Does not judge what it finds; `discovery.py` does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

from pagoda.layouts.latent import LATENT_FAMILIES
from pagoda.layouts.spec import Reach
from pagoda.models.build import Build
from pagoda.models.joint import Siblings, watch_siblings
from pagoda.models.latent import attend_latents
from pagoda.models.own_attention import OWN_ATTENTION_FAMILIES, call_function, interface_name
from pagoda.models.packed_decoder import PackedDecoder
from pagoda.models.projections import watch_projections
from pagoda.models.quiet import quiet
from pagoda.models.recurrent import StateNotes

PROBE_NAME = "pagoda-probe"
LATENT_PROBE_NAME = "pagoda-latent-probe"
PROBE_TOKENS = 3
ENCODER_PROBE_TOKENS = 5


@dataclass(frozen=True)
class MaskNote:
    """What transformers would have built: the names of the mask functions it composed, and the window or chunk."""

    overlays: frozenset[str]
    span: int | None


@dataclass(frozen=True)
class Call:
    """One attention call. The tensors live on the meta device; calls that share a cache receive the same objects.

    `own_reach` is said by families whose mask is not transformers' (`own_attention.py`): reach and span.
    """

    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
    mask: Any
    scale: Any
    soft_cap: float | None
    has_sinks: bool
    has_position_bias: bool
    has_distance_biases: bool = False
    has_latents: bool = False
    slopes: tuple[float, ...] | None = None
    own_reach: tuple[Reach, int | None] | None = None

    @property
    def is_cross(self) -> bool:
        """Whether the keys are those of an encoder's output."""
        return self.key.shape[2] == ENCODER_PROBE_TOKENS


@dataclass(frozen=True)
class Recording:
    """A network without weights, its attention calls in call order, and what stopped its forward, if anything did.

    `states` are the notes of its recurrent layers. `takers` names the linear layers that take what each call gave,
    `siblings` those that were given the same rows, of networks that take parts of wider rows for what these give.
    """

    network: torch.nn.Module
    calls: list[Call]
    takers: dict[int, set[str]]
    siblings: tuple[tuple[str, ...], ...]
    states: StateNotes
    failure: Exception | None


def record_calls(config: Any, build: Build) -> Recording:
    """Run a model of `config`, made by `build`, with the two stand-ins."""
    network = _build_on_meta(config, build)
    states = StateNotes(network)
    call = _calling_decoder(network) if config.is_encoder_decoder else _calling(network)
    recording = _run(network, states, call, "meta")
    if isinstance(recording.failure, (NotImplementedError, RuntimeError)):
        # Some families route by values, which meta tensors lack. Memory that nobody has written costs nothing to read,
        # so the same network with uninitialised weights stays cheap.
        network.to_empty(device="cpu")
        for buffer in network.buffers():
            buffer.zero_()
        recording = _run(network, states, call, "cpu")
    return recording


# Computes packed tokens at positions, all [tokens], and the logits of some rows of them.
_PackedCall = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]


def _calling(network: Any) -> _PackedCall:
    def call(tokens: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> Any:
        # Rows are a tensor, because some families shorten their last layers when given a number.
        return network(input_ids=tokens[None], position_ids=positions[None], use_cache=False, logits_to_keep=rows)

    return call


def _calling_decoder(network: Any) -> _PackedCall:
    decoder = PackedDecoder(network)

    def call(tokens: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> Any:
        return decoder(
            tokens, positions, rows, tokens.new_zeros(ENCODER_PROBE_TOKENS, decoder.encoder_width).to(network.dtype)
        )

    return call


def _run(network: Any, states: StateNotes, call: _PackedCall, device: str) -> Recording:
    """The first of two ways that does not fail: with what linear layers give as parts of wider rows, or as it is."""
    recording = _run_once(network, states, call, device, in_parts=True)
    if recording.failure is not None:
        recording = replace(_run_once(network, states, call, device, in_parts=False), siblings=())
    return recording


def _run_once(network: Any, states: StateNotes, call: _PackedCall, device: str, in_parts: bool) -> Recording:
    states.begin()
    calls: list[Call] = []
    takers: dict[int, set[str]] = {}
    siblings = Siblings()
    failure = None
    token = _calls_in_flight.set(calls)
    try:
        with (
            quiet(),
            _no_packing_search(),
            torch.inference_mode(),
            torch.device(device),
            watch_projections(network, calls) as takers,
            watch_siblings(network, in_parts) as siblings,
        ):
            tokens = torch.zeros(PROBE_TOKENS, dtype=torch.long)
            call(tokens, torch.arange(PROBE_TOKENS), torch.zeros(1, dtype=torch.long))
    except Exception as error:  # whatever a family does with stand-ins it does not expect
        failure = error
    finally:
        _calls_in_flight.reset(token)
    return Recording(network, calls, takers, siblings.groups(), states, failure)


def _build_on_meta(config: Any, build: Build) -> Any:
    """A network without weights, whose experts do not need grouped matrix products, which meta tensors lack."""
    with quiet(), torch.device("meta"):
        network = build(
            copy.deepcopy(config),
            attn_implementation=interface_name(config, PROBE_NAME),
            experts_implementation="batched_mm",
            dtype=torch.bfloat16,
        ).eval()
    if config.model_type in LATENT_FAMILIES:
        attend_latents(network, LATENT_PROBE_NAME)
    if config.model_type in OWN_ATTENTION_FAMILIES:
        call_function(network, _note_call)
    return network


_calls_in_flight: ContextVar[list[Call]] = ContextVar("pagoda_probe_calls")


def _note_call(  # noqa: PLR0913 - the signature is transformers'
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    *,
    scaling: Any = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    slopes: tuple[float, ...] | None = None,
    own_reach: tuple[Reach, int | None] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    output = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    _calls_in_flight.get().append(
        Call(
            module,
            query,
            key,
            value,
            output,
            attention_mask,
            scaling,
            softcap,
            has_sinks=s_aux is not None,
            # Biases by distance, [heads, distances], are another thing (packed_decoder.py).
            has_position_bias=position_bias is not None and position_bias.dim() > 2,
            has_distance_biases=position_bias is not None and position_bias.dim() == 2 and position_bias.numel() > 0,
            slopes=slopes,
            own_reach=own_reach,
        )
    )
    return output, None


def _note_latent_call(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    *,
    scaling: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    output = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], module.v_head_dim)
    _calls_in_flight.get().append(
        Call(module, query, key, value, output, attention_mask, scaling, None, False, False, has_latents=True)
    )
    return output, None


def _note_mask(*, mask_function: Callable[..., Any], local_size: int | None = None, **_: Any) -> MaskNote:
    return MaskNote(frozenset(_names(mask_function)), local_size)


def _names(function: Any) -> set[str]:
    """The names of a mask function and of those composed into it."""
    found = {function.__qualname__.split(".")[0]}
    for cell in function.__closure__ or ():
        content = cell.cell_contents
        for part in content if isinstance(content, (tuple, list)) else (content,):
            found |= _names(part) if callable(part) else set()
    return found


@contextmanager
def _no_packing_search() -> Iterator[None]:
    """Transformers looks for packed sequences in the values of the position ids, and meta tensors have no values."""
    transformers_masks: Any = masking_utils
    search = transformers_masks.find_packed_sequence_indices
    transformers_masks.find_packed_sequence_indices = lambda _: None
    try:
        yield
    finally:
        transformers_masks.find_packed_sequence_indices = search


AttentionInterface.register(PROBE_NAME, _note_call)
AttentionInterface.register(LATENT_PROBE_NAME, _note_latent_call)
AttentionMaskInterface.register(PROBE_NAME, _note_mask)
