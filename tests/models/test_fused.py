"""Which modules the surgery takes, that it changes nothing outside a step, and that a step computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP, Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from pagoda.kernels.base import GroupView
from pagoda.kernels.reference import ReferenceKernels
from pagoda.models.attention import PagedStep, in_flight
from pagoda.models.fused import FusedMLP, FusedNorm, fuse

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "head_dim": 8, "num_hidden_layers": 1}
LLAMA = LlamaConfig(**SIZES, num_key_value_heads=1)


def norm(kind: type, dtype: torch.dtype = torch.float32) -> nn.Module:
    made: nn.Module = kind(16, eps=1e-5).to(dtype)
    nn.init.normal_(made.weight)
    return made


class TestWhatIsTaken:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_plain_rms_norm(self, dtype):
        module = norm(LlamaRMSNorm, dtype)
        fuse(module)
        assert isinstance(module, FusedNorm)
        assert isinstance(module, LlamaRMSNorm)

    @pytest.mark.parametrize("module", [norm(Gemma2RMSNorm), nn.LayerNorm(16), nn.RMSNorm(16, eps=None)])
    def test_not_a_norm_of_another_formula(self, module):
        fuse(module)
        assert not isinstance(module, FusedNorm)

    def test_an_mlp_gated_by_silu(self):
        module = LlamaMLP(LLAMA)
        fuse(module)
        assert isinstance(module, FusedMLP)

    def test_not_one_gated_otherwise(self):
        module = Gemma2MLP(Gemma2Config(**SIZES))
        fuse(module)
        assert not isinstance(module, FusedMLP)

    def test_attention_with_the_usual_rotation(self):
        module = LlamaAttention(LLAMA, 0)
        fuse(module)
        assert type(module) is not LlamaAttention
        assert isinstance(module, LlamaAttention)


def modules() -> list[nn.Module]:
    torch.manual_seed(0)
    return [norm(LlamaRMSNorm), LlamaMLP(LLAMA)]


@pytest.mark.parametrize("index", range(2))
def test_outside_a_step_nothing_changes(index):
    module, rows = modules()[index], torch.randn(1, 5, 16)
    before = module(rows)
    fuse(module)
    assert torch.equal(module(rows), before)


class CountingKernels(ReferenceKernels):
    """The reference, noting what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def rms_norm(self, *arguments):
        self.calls.append("rms_norm")
        return super().rms_norm(*arguments)

    def gated_silu(self, *arguments):
        self.calls.append("gated_silu")
        return super().gated_silu(*arguments)


@pytest.mark.parametrize(("index", "operation"), [(0, "rms_norm"), (1, "gated_silu")])
@torch.inference_mode()
def test_in_a_step_the_kernels_compute_it(index, operation):
    module, rows = modules()[index], torch.randn(1, 5, 16)
    before = module(rows)
    fuse(module)
    kernels = CountingKernels()
    nothing = torch.zeros(1, dtype=torch.int32)
    with in_flight(PagedStep(kernels, (), (GroupView(nothing, nothing, nothing, nothing),))):
        assert torch.equal(module(rows), before)
    assert kernels.calls == [operation]


@torch.inference_mode()
def test_a_norm_of_another_type_than_its_input_is_left_to_torch():
    module = norm(LlamaRMSNorm)
    fuse(module)
    kernels = CountingKernels()
    nothing = torch.zeros(1, dtype=torch.int32)
    with in_flight(PagedStep(kernels, (), (GroupView(nothing, nothing, nothing, nothing),))):
        module(torch.randn(1, 5, 16).bfloat16())
    assert kernels.calls == []
