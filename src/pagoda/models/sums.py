"""Surgery after loading: decoder layers that hand every sum of residuals to a kernel with the norm that is behind it.

A layer of most families adds what attention gives to its input, norms the sum, and adds what its MLP gives; the layer
behind norms that sum. The kernel gives sum and norm at once, and the norm, when it is called with that sum, gives what
is there. A layer changes its class only if a twin with small parts proves, on numbers, to compute this to the last bit,
and to pass on all that attention is told. Everything outside a step keeps Transformers' own code.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from pagoda.models.attention import PagedStep, step_in_flight
from pagoda.models.fused import PROBE_WIDTH, FusedMLP, FusedNorm, agree, mixed, numbers, small_linear

NORMS = ("input_layernorm", "post_attention_layernorm")
# What a layer is told besides its rows, all of which attention must hear: the usual words, and one that nobody knows.
TOLD = ("attention_mask", "position_ids", "past_key_values", "use_cache", "position_embeddings", "pagoda_word")


class SummedLayer(nn.Module):
    """Mixed in before the class of a decoder layer; `norm_behind` it is that of the next one, if there is one."""

    input_layernorm: Any
    self_attn: Any
    post_attention_layernorm: Any
    mlp: Any
    norm_behind: tuple[FusedNorm, ...] = ()  # not the norm itself, which would be a part of the layer

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **told: Any) -> Any:
        step = step_in_flight()
        if step is None or arguments:
            return super().forward(hidden_states, *arguments, **told)
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **told)
        total = _sum_for(self.post_attention_layernorm, hidden_states, attended, step)
        out = self.mlp(self.post_attention_layernorm(total))
        return _sum_for(self.norm_behind[0], total, out, step) if self.norm_behind else total + out


def fuse_sums(network: nn.Module) -> None:
    """Let every decoder layer of `network` that proves to be one of the above use the kernel. For fused ones."""
    for module in network.modules():
        if _is_summed_layer(module):
            module.__class__ = mixed(SummedLayer, type(module))
    for module in network.modules():
        if isinstance(module, nn.ModuleList):
            for layer, behind in pairwise(module):
                if isinstance(layer, SummedLayer) and isinstance(behind, SummedLayer):
                    layer.norm_behind = (behind.input_layernorm,)


def _sum_for(norm: FusedNorm, residual: torch.Tensor, added: torch.Tensor, step: PagedStep) -> torch.Tensor:
    if norm.is_proven is False or residual.dtype is not norm.weight.dtype:
        return residual + added
    total, normed = step.layers.add_norm(residual, added, norm.weight, norm.fused_epsilon)
    step.ahead[norm] = (total, normed)
    return total


def _is_summed_layer(module: nn.Module) -> bool:
    children = dict(module.named_children())
    if set(children) != {*NORMS, "self_attn", "mlp"} or not isinstance(children["mlp"], FusedMLP):
        return False
    if not all(isinstance(children[name], FusedNorm) for name in NORMS):
        return False
    first, second = (small_linear(seed) for seed in range(2))
    told, mlp = {name: object() for name in TOLD}, small_linear(2)
    attention = _Hearing(told)
    twin = copy.copy(module)
    twin._modules = dict(zip((*NORMS, "self_attn", "mlp"), (first, second, attention, mlp), strict=True))
    probe = numbers(1, 2, PROBE_WIDTH)
    total = probe + attention.layer(first(probe))
    return agree(lambda rows: twin(rows, **told), (probe,), total + mlp(second(total)))


class _Hearing(nn.Module):
    """Stands for attention, and fails unless it hears all that it should, and nothing else."""

    def __init__(self, told: dict[str, object]) -> None:
        super().__init__()
        self.layer = small_linear(3)
        self._told = told

    def forward(self, *, hidden_states: torch.Tensor, **told: object) -> tuple[torch.Tensor, None]:
        assert told == self._told
        return self.layer(hidden_states), None
