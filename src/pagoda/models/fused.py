"""Surgery after loading: norms, gated MLPs and rotary embeddings on the kernels of the step in flight.

A module changes its class only if it proves, on numbers, to compute what the kernel's definition says
(kernels/reference_layers.py), to the last bit. Whatever differs in formula or types keeps Transformers' own code, as
does everything outside a step.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pagoda.kernels.reference_layers import ReferenceLayers
from pagoda.models.attention import kernels_in_flight, step_in_flight
from pagoda.models.coded_experts import CodedExperts
from pagoda.models.linear import PagedLinear
from pagoda.models.rebinding import global_of, rebound

ROTARY_FUNCTION = "apply_rotary_pos_emb"
GATED_MLP = ("gate_proj", "up_proj", "down_proj")
PROBE_WIDTH = 8

Rotation = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class FusedNorm(nn.Module):
    """Mixed in before the class of an RMS norm."""

    weight: torch.Tensor
    fused_epsilon: float
    # Whether rows that were normed with the sum that they are (sums.py) are still the same when the norm is called;
    # None before it was tried.
    is_proven: bool | None = None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        step = step_in_flight()
        if step is None or hidden_states.dtype is not self.weight.dtype:
            alone: torch.Tensor = super().forward(hidden_states)
            return alone
        rows, normed = step.ahead.pop(self, (None, None))
        if rows is hidden_states and normed is not None and self.is_proven:
            return normed
        alone = step.layers.rms_norm(hidden_states, self.weight, self.fused_epsilon)
        if normed is not None and self.is_proven is None:
            self.is_proven = rows is hidden_states and torch.equal(alone, normed)
        return alone


class FusedMLP(nn.Module):
    """Mixed in before the class of an MLP gated by SiLU."""

    gate_proj: Any
    up_proj: Any
    down_proj: Any
    plain_gates: bool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernels = kernels_in_flight()
        out: torch.Tensor
        if kernels is None:
            out = super().forward(x)
        elif self.plain_gates and kernels.takes_gated_linear(x, self.gate_proj.weight, self.up_proj.weight):
            out = self.down_proj(kernels.gated_linear(x, self.gate_proj.weight, self.up_proj.weight))
        else:
            out = self.down_proj(kernels.gated_silu(self.gate_proj(x), self.up_proj(x)))
        return out


def fuse(network: Any) -> None:
    """Let every module of `network` that proves to be one of the above use the kernels."""
    for module in network.modules():
        kind = type(module)
        epsilon = _norm_epsilon(module)
        if epsilon is not None:
            module.fused_epsilon = epsilon
            module.__class__ = mixed(FusedNorm, kind)
        elif _is_gated_mlp(module):
            module.plain_gates = all(_is_plain(module.get_submodule(name)) for name in ("gate_proj", "up_proj"))
            module.__class__ = mixed(FusedMLP, kind)
        elif isinstance(module, CodedExperts):
            module.has_plain_gate = _has_plain_gate(module)
        elif rotation := _rotation(kind):
            module.__class__ = _rotating(kind, rotation)


def mixed(mixin: type[nn.Module], kind: type[nn.Module]) -> type[nn.Module]:
    """`kind` with `mixin` before it."""
    return type(kind.__name__, (mixin, kind), {})


def _norm_epsilon(module: nn.Module) -> float | None:
    """The epsilon of a module that is an RMS norm with a weight."""
    epsilon = vars(module).get("variance_epsilon", vars(module).get("eps"))
    parameters = dict(module.named_parameters())
    if len(inspect.signature(module.forward).parameters) != 1:  # some are gated by a second input
        return None
    if not isinstance(epsilon, float) or list(parameters) != ["weight"] or parameters["weight"].dim() != 1:
        return None
    weight = parameters["weight"].data
    probe = numbers(3, weight.numel()).to(weight)
    return epsilon if agree(module, (probe,), ReferenceLayers().rms_norm(probe, weight, epsilon)) else None


def _is_gated_mlp(module: nn.Module) -> bool:
    """Whether a module is down(silu(gate(x)) * up(x)); a twin with small layers is asked."""
    children = dict(module.named_children())
    if not all(isinstance(children.get(name), nn.Linear) for name in GATED_MLP):
        return False
    twin = copy.copy(module)
    small = {name: small_linear(seed) for seed, name in enumerate(GATED_MLP)}
    twin._modules = {**children, **small}
    probe = numbers(2, PROBE_WIDTH)
    gate, up, down = small.values()
    return agree(twin, (probe,), down(ReferenceLayers().gated_silu(gate(probe), up(probe))))


def _has_plain_gate(experts: Any) -> bool:
    """Whether experts gate by SiLU: the first half of what they are given the second."""
    probe = numbers(2, 2 * PROBE_WIDTH)
    return bool(experts.has_gate) and agree(
        experts._apply_gate, (probe,), ReferenceLayers().gated_silu(*probe.chunk(2, dim=-1))
    )


def _is_plain(layer: Any) -> bool:
    """Whether a layer is its weight and nothing else."""
    return type(layer) in (nn.Linear, PagedLinear) and layer.bias is None


def _rotation(kind: type[nn.Module]) -> Rotation | None:
    """The rotary function that the forward of `kind` calls, if it is the usual one for queries and keys."""
    rotation: Rotation | None = global_of(kind, ROTARY_FUNCTION)
    query, key = numbers(1, 3, 5, PROBE_WIDTH), numbers(1, 2, 5, PROBE_WIDTH, seed=1)
    cosines, sines = numbers(1, 5, PROBE_WIDTH, seed=2), numbers(1, 5, PROBE_WIDTH, seed=3)
    expected = tuple(ReferenceLayers().rotate(rows, cosines, sines) for rows in (query, key))
    return rotation if rotation and agree(rotation, (query, key, cosines, sines), expected) else None


def _rotating(kind: type[nn.Module], rotation: Rotation) -> type[nn.Module]:
    """`kind`, its forward bound to a rotary function that asks the kernels first."""

    def rotate(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *rest: Any) -> Any:
        kernels = kernels_in_flight()
        if kernels is None or rest or not (kernels.takes_rotation(query, cos) and kernels.takes_rotation(key, cos)):
            return rotation(query, key, cos, sin, *rest)
        return kernels.rotate_both(query, key, cos, sin)

    return rebound(kind, ROTARY_FUNCTION, rotate)


def small_linear(seed: int) -> nn.Linear:
    """A stand-in of `PROBE_WIDTH`, for proofs."""
    layer = nn.Linear(PROBE_WIDTH, PROBE_WIDTH, bias=False, device="meta")  # draws no random numbers
    layer.weight = nn.Parameter(numbers(PROBE_WIDTH, PROBE_WIDTH, seed=seed))
    return layer


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal ones, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def agree(function: Callable[..., Any], arguments: tuple[torch.Tensor, ...], expected: Any) -> bool:
    """Whether `function` gives `expected` to the last bit; one that takes something else does not."""
    try:
        result = function(*arguments)
    except Exception:
        return False
    pairs = [(result, expected)] if isinstance(expected, torch.Tensor) else list(zip(result, expected, strict=False))
    return all(isinstance(got, torch.Tensor) and torch.equal(got, wanted) for got, wanted in pairs)
