"""Layers whose weights are codes: surgery after loading, which takes linear layers, embeddings and experts (in
`coded_experts.py`) their dense weights.

Outside a step codes are decoded, which is right for all, but slow. Knows modules of torch. Does not know where codes
come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pagoda.kernels.coded_sizes import BLOCK_ROWS
from pagoda.kernels.coded_stack import CodedStack
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.layouts.latent import LATENT_FAMILIES
from pagoda.models.attention import kernels_in_flight
from pagoda.models.coded_experts import CodedExperts, Stacks, are_codable, give_dense, take_codes

# Layers whose weights the code of their family reads by itself, and families whose code reads the table of tokens so.
READ_BY_FAMILIES = ("classifier", "dt_proj", "embed_positions", "kv_b_proj", "wo")
# Of these, what makes keys and values of latents: `latent.py` reads it, in codes if heads have whole blocks of rows.
EXPANSION = "kv_b_proj"
TABLE_READERS = ("gemma4", "gemma4_unified")


class Coded:
    """Mixed in before a layer's class: what stands for its weight has a shape, a type and a device, and no numbers.

    Families ask for these. Whoever reads numbers gets NaN, which shows; they are to be had from `dense`.
    """

    coded: CodedWeight
    dense_dtype: torch.dtype

    @property
    def weight(self) -> torch.Tensor:
        number = torch.full((), float("nan"), dtype=self.dense_dtype, device=self.coded.data.device)
        return number.expand(self.coded.shape)

    def dense(self) -> torch.Tensor:
        """All weights, decoded anew."""
        return self.coded.decode(self.dense_dtype)


class CodedLinear(Coded, nn.Linear):  # type: ignore[override]
    """`nn.Linear` on codes: in a step on a processor its input is coded to 8 bits."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        kernels = kernels_in_flight()
        if kernels is None:
            return functional.linear(input, self.dense(), self.bias)
        return kernels.coded_linear(input, self.coded, self.bias)


class CodedEmbedding(Coded, nn.Embedding):  # type: ignore[override]
    """`nn.Embedding` on codes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        kernels = kernels_in_flight()
        if kernels is None:
            return self.coded.decode_rows(input, self.dense_dtype)
        return kernels.coded_rows(self.coded, input, self.dense_dtype)


def codable_layers(network: Any) -> dict[str, nn.Module]:
    """Linear layers, and embeddings of any kind that do not renormalise what they read, by name."""
    table = network.get_input_embeddings().weight if network.config.model_type in TABLE_READERS else None
    read = {name for name, _ in network.named_modules() if name.rpartition(".")[2] in READ_BY_FAMILIES}
    read -= _expansions(network)
    return {name: module for name, module in network.named_modules() if name not in read and _is_codable(module, table)}


def _is_codable(module: Any, left: torch.Tensor | None) -> bool:
    is_table = isinstance(module, nn.Embedding) and not isinstance(module, Coded) and module.max_norm is None
    return (type(module) is nn.Linear or is_table) and module.weight is not left


def _expansions(network: Any) -> set[str]:
    """The layers that make keys and values of latents, where these may be codes, by name."""
    if network.config.model_type not in LATENT_FAMILIES:
        return set()
    attention = {name: each for name, each in network.named_modules() if callable(getattr(each, "expand_kv", None))}
    return {
        f"{name}.{EXPANSION}"
        for name, each in attention.items()
        if not each.qk_nope_head_dim % BLOCK_ROWS and not each.v_head_dim % BLOCK_ROWS
    }


def codable_experts(network: nn.Module) -> dict[str, nn.Module]:
    """Modules of transformers' interface for experts, by name."""
    return {name: module for name, module in network.named_modules() if are_codable(module)}


def coded_weights(network: nn.Module) -> dict[str, CodedWeight | CodedStack]:
    """Those that the layers of `network` have, by the names of dense ones, each once."""
    found: list[tuple[str, CodedWeight | CodedStack]] = []
    for name, module in network.named_modules():
        if isinstance(module, CodedExperts):
            for matrix, stacks in module.coded.items():
                ends = ("",) if len(stacks) == 1 else tuple(f".{part}" for part in range(len(stacks)))
                found += [(f"{name}.{matrix}{end}", each) for end, each in zip(ends, stacks, strict=True)]
        elif isinstance(module, Coded):
            found.append((f"{name}.weight", module.coded))
    once = {id(coded): (name, coded) for name, coded in reversed(found)}
    return dict(reversed(once.values()))


def held_weight(module: Any) -> CodedWeight | torch.Tensor:
    """What a linear layer or an embedding has for a weight."""
    coded: CodedWeight | None = vars(module).get("coded")
    return module.weight if coded is None else coded


def install(
    network: nn.Module, weights: Mapping[str, CodedWeight], experts: Mapping[str, Stacks] = MappingProxyType({})
) -> None:
    """Let the layers of `network` compute with `weights`, by the names of their dense ones, whose type results have.

    A head that is tied to an embedding gets its codes too. All names must be weights of modules that take codes, and
    those of `experts` their matrices.
    """
    tied = {id(parameter): weights[name] for name, parameter in network.named_parameters() if name in weights}
    for module in list(network.modules()):
        dense = module._parameters.get("weight")
        coded = None if dense is None else tied.get(id(dense))
        if coded is not None:
            _set(module, coded)
    by_module: dict[str, dict[str, Stacks]] = {}
    for name, stacks in experts.items():
        path, _, matrix = name.rpartition(".")
        by_module.setdefault(path, {})[matrix] = stacks
    for path, matrices in by_module.items():
        take_codes(network.get_submodule(path), matrices)


def decode(network: nn.Module) -> None:
    """Give the coded layers of `network` dense weights of what their codes stand for; what is tied stays so."""
    dense: dict[int, nn.Parameter] = {}
    for module in list(network.modules()):
        if isinstance(module, Coded):
            key = id(module.coded)
            if key not in dense:
                dense[key] = nn.Parameter(module.dense(), requires_grad=False)
            _unset(module, dense[key])
        elif isinstance(module, CodedExperts):
            give_dense(module)


def _set(module: Any, coded: CodedWeight) -> None:
    dense = module._parameters.pop("weight")
    assert tuple(dense.shape) == coded.shape
    module.__class__ = _coded_kind(type(module))
    module.coded, module.dense_dtype = coded, dense.dtype
    module.register_parameter(_parameter_name(coded), coded.data)


def _unset(module: Any, dense: nn.Parameter) -> None:
    del module._parameters[_parameter_name(module.coded)]
    plain = (kind for kind in type(module).__mro__ if issubclass(kind, (nn.Linear, nn.Embedding)))
    module.__class__ = next(kind for kind in plain if not issubclass(kind, Coded))
    del module.coded, module.dense_dtype
    module.register_parameter("weight", dense)


def _parameter_name(coded: CodedWeight) -> str:
    """Another for each coding, so that the same bytes of two are not taken for the same weights."""
    return coded.kind.replace(" ", "_")


def _coded_kind(kind: type[nn.Module]) -> type[nn.Module]:
    """A family's own embedding keeps what it does besides, such as scaling: it calls the plain one, where ours is."""
    plain = {nn.Linear: CodedLinear, nn.Embedding: CodedEmbedding}
    return plain.get(kind) or type(kind.__name__, (kind, CodedEmbedding), {})
