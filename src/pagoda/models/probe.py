"""A forward pass that computes nothing and records every attention call: shapes, scale, mask, soft cap, sinks.

The model is built on the meta device (no weights, no arithmetic) with two stand-ins: an attention function that notes its
arguments and a mask function that returns a description instead of a mask. The mask is the witness for windows and chunks:
some families do not pass them as keywords. Does not judge what it finds; `discovery.py` does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

from pagoda.models.quiet import quiet

PROBE_NAME = "pagoda-probe"
PROBE_TOKENS = 3


@dataclass(frozen=True)
class MaskNote:
    """What transformers would have built: the names of the mask functions it composed, and the window or chunk."""

    overlays: frozenset[str]
    span: int | None


@dataclass(frozen=True)
class Call:
    """One attention call. The tensors live on the meta device; calls that share a cache receive the same objects."""

    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Any
    scale: Any
    soft_cap: float | None
    has_sinks: bool
    has_position_bias: bool


def record_calls(config: Any, build: Callable[..., Any]) -> tuple[torch.nn.Module, list[Call]]:
    """Run a model of `config`, made by `build`, on the meta device; return it with its calls in call order."""
    network = _build_on_meta(config, build)
    try:
        return network, _run(network, "meta")
    except (NotImplementedError, RuntimeError):
        # Some experts are routed by values, which meta tensors lack. Pages of memory that nobody has written cost
        # nothing to read, so the same network with uninitialised weights stays cheap.
        return network, _run(network.to_empty(device="cpu"), "cpu")


def _run(network: Any, device: str) -> list[Call]:
    calls: list[Call] = []
    token = _calls_in_flight.set(calls)
    try:
        with quiet(), _no_packing_search(), torch.inference_mode():
            tokens = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device=device)
            # A tensor, because some families shorten their last layers when given a number.
            rows = torch.zeros(1, dtype=torch.long, device=device)
            network(input_ids=tokens, use_cache=False, logits_to_keep=rows)
    finally:
        _calls_in_flight.reset(token)
    return calls


def _build_on_meta(config: Any, build: Callable[..., Any]) -> Any:
    """A model without weights. bf16, because the grouped matrix product of experts accepts nothing else on meta."""
    with quiet(), torch.device("meta"):
        return build(copy.deepcopy(config), attn_implementation=PROBE_NAME, dtype=torch.bfloat16).eval()


_calls_in_flight: ContextVar[list[Call]] = ContextVar("pagoda_probe_calls")


def _note_call(
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
    **_: Any,
) -> tuple[torch.Tensor, None]:
    _calls_in_flight.get().append(
        Call(module, query, key, value, attention_mask, scaling, softcap, s_aux is not None, position_bias is not None)
    )
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


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
    search = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = search


AttentionInterface.register(PROBE_NAME, _note_call)
AttentionMaskInterface.register(PROBE_NAME, _note_mask)
