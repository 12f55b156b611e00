"""Multi-head latent attention over pages of latents (DeepSeek-V2, arXiv 2405.04434).

Transformers expands the latents of all tokens to keys and values in every step. Here a page keeps the latent and the
rotary key alone, and the up-projections move to the other side of both products: queries go into latent space, results
come out of it. Both are views of the layer's own weight, or read its codes.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from pagoda.kernels.coded_stack import CodedStack
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.kernels.layers import LayerKernels
from pagoda.models.attention import step_of_call
from pagoda.models.coded import held_weight

LATENT_ATTENTION_NAME = "pagoda-latent"


def attend_latents(network: Any, attention_name: str = LATENT_ATTENTION_NAME) -> None:
    """Let the attention layers of `network` hand over latents and rotary keys, to the function of that name."""
    for attention in network.modules():
        if not callable(getattr(attention, "expand_kv", None)):
            continue
        attention.expand_kv = _unexpanded
        attention.coded_projections = _coded_projections(attention)
        attention.config = copy.copy(attention.config)
        attention.config._attn_implementation = attention_name


def _unexpanded(latent: torch.Tensor, rotary_key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return latent, rotary_key


def latent_attention(
    module: Any,
    query: torch.Tensor,  # [1, heads, rows, nope + rotary width]
    key: torch.Tensor,  # [1, 1, rows, latent width]
    value: torch.Tensor,  # [1, 1, rows, rotary width]: what `_unexpanded` gives in the place of values
    attention_mask: torch.Tensor | None = None,
    *,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: `paged_attention` in latent space."""
    step = step_of_call(module, attention_mask)
    projections = up_projections(module)
    nope, rotary = query[0].transpose(0, 1).split([module.qk_nope_head_dim, value.shape[-1]], dim=-1)
    inner = torch.cat((projections.into_latents(nope, step.layers), rotary), dim=-1)
    row = torch.cat((key[0], value[0]), dim=-1).transpose(0, 1)
    out = step.attend(inner, row, None, scaling)
    return projections.out_of_latents(out, step.layers).unsqueeze(0), None


class UpProjections(Protocol):
    """Both products with the weight of a layer that makes keys and values of latents."""

    def into_latents(self, nope: torch.Tensor, layers: LayerKernels) -> torch.Tensor:
        """[rows, heads, latent] of [rows, heads, nope]"""

    def out_of_latents(self, latents: torch.Tensor, layers: LayerKernels) -> torch.Tensor:
        """[rows, heads, value] of [rows, heads, latent]"""


class DenseUpProjections:
    """Views of a weight [heads * (nope + value), latent]."""

    def __init__(self, weight: torch.Tensor, nope: int, value: int) -> None:
        keys, values = weight.detach().unflatten(0, (-1, nope + value)).split([nope, value], dim=1)
        self.into, self.out_of = keys, values.transpose(1, 2)

    def into_latents(self, nope: torch.Tensor, layers: LayerKernels) -> torch.Tensor:
        return layers.multiply_heads(nope, self.into)

    def out_of_latents(self, latents: torch.Tensor, layers: LayerKernels) -> torch.Tensor:
        return layers.multiply_heads(latents, self.out_of)


class CodedUpProjections:
    """The same of codes, in whose blocks heads begin and values follow keys.

    Queries meet them as they are, along their rows. Results are coded, as the input of other layers is: the rows of
    values are as many matrices as divide those of keys and of values, so that each head's are some of all.
    """

    def __init__(self, weight: CodedWeight, nope: int, value: int) -> None:
        rows = math.gcd(nope, value)
        self._weight = weight
        self._matrices = CodedStack.of_rows(weight, rows)
        device = weight.data.device
        heads = torch.arange(weight.rows // (nope + value), device=device).unsqueeze(1) * ((nope + value) // rows)
        # [heads, matrices of one]
        self._numbers = heads + nope // rows + torch.arange(value // rows, device=device)

    def into_latents(self, nope: torch.Tensor, layers: LayerKernels) -> torch.Tensor:
        return layers.coded_heads(nope, self._weight, first=0)

    def out_of_latents(self, latents: torch.Tensor, layers: LayerKernels) -> torch.Tensor:
        numbers = self._numbers.expand(len(latents), -1, -1).flatten(0, 1)
        out = layers.coded_experts(latents.flatten(0, 1), self._matrices, numbers, None)
        return out.reshape(*latents.shape[:2], -1)


def up_projections(attention: Any) -> UpProjections:
    """Those of a layer, as its weight is held: codes stay where they are, and what is dense may move."""
    coded: CodedUpProjections | None = attention.coded_projections
    return coded or DenseUpProjections(attention.kv_b_proj.weight, *_widths(attention))


def _coded_projections(attention: Any) -> CodedUpProjections | None:
    held = held_weight(attention.kv_b_proj)
    return CodedUpProjections(held, *_widths(attention)) if isinstance(held, CodedWeight) else None


def _widths(attention: Any) -> tuple[int, int]:
    return attention.qk_nope_head_dim, attention.v_head_dim


AttentionInterface.register(LATENT_ATTENTION_NAME, latent_attention)
