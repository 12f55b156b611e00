"""Multi-head latent attention over pages of latents (DeepSeek-V2, arXiv 2405.04434).

Transformers expands the latents of all tokens to keys and values in every step. Here a page keeps the latent and the
rotary key alone, and the up-projections move to the other side of both products: queries go into latent space, results
come out of it. Both are views of the layer's own weight.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AttentionInterface

from pagoda.models.attention import step_of_call

LATENT_ATTENTION_NAME = "pagoda-latent"


def attend_latents(network: Any, attention_name: str = LATENT_ATTENTION_NAME) -> None:
    """Let the attention layers of `network` hand over latents and rotary keys, to the function of that name."""
    for attention in network.modules():
        if not callable(getattr(attention, "expand_kv", None)):
            continue
        attention.expand_kv = _unexpanded
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
    into, out_of = up_projections(module)
    nope, rotary = query[0].transpose(0, 1).split([into.shape[1], value.shape[-1]], dim=-1)
    inner = torch.cat((step.layers.multiply_heads(nope, into), rotary), dim=-1)
    row = torch.cat((key[0], value[0]), dim=-1).transpose(0, 1)
    out = step.attend(inner, row, None, scaling)
    return step.layers.multiply_heads(out, out_of).unsqueeze(0), None


def up_projections(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What takes queries into latent space, [heads, nope, latent], and results out of it, [heads, latent, value]."""
    weight = module.kv_b_proj.weight
    width = module.qk_nope_head_dim + module.v_head_dim
    keys, values = weight.view(-1, width, weight.shape[-1]).split([module.qk_nope_head_dim, module.v_head_dim], dim=1)
    return keys, values.transpose(1, 2)


AttentionInterface.register(LATENT_ATTENTION_NAME, latent_attention)
