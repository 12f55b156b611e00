"""Decoder layers whose sums are one kernel with the norm behind them, and what they must be to become such."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GraniteConfig, LlamaConfig
from transformers.models.granite.modeling_granite import GraniteDecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from oracle import families
from pagoda.kernels.reference import ReferenceKernels
from pagoda.kernels.reference_layers import ReferenceLayers
from pagoda.models import fused, sums
from pagoda.models import model as model_module
from pagoda.models.fused import FusedNorm, fuse
from pagoda.models.model import Model
from pagoda.models.quiet import quiet
from pagoda.models.selftest import SEQUENCE_TOKENS, PagedRun
from pagoda.models.sums import SummedLayer, fuse_sums

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "head_dim": 8, "num_hidden_layers": 1}
LLAMA = LlamaConfig(**SIZES, num_key_value_heads=1)


class Deaf(LlamaDecoderLayer):
    """Attention is not told all."""

    def forward(self, hidden_states: torch.Tensor, position_ids: Any = None, **told: Any) -> torch.Tensor:
        return super().forward(hidden_states, **told)


class Scaled(LlamaDecoderLayer):
    def forward(self, hidden_states: torch.Tensor, **told: Any) -> torch.Tensor:
        return super().forward(hidden_states, **told) * 1.5


class Wider(LlamaDecoderLayer):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.third_norm = LlamaRMSNorm(16)


def is_taken(layer: nn.Module) -> bool:
    layer.eval()
    fuse(layer)
    fuse_sums(layer)
    return isinstance(layer, SummedLayer)


class TestWhatIsTaken:
    def test_a_layer_that_norms_adds_and_passes_all_on(self) -> None:
        assert is_taken(LlamaDecoderLayer(LLAMA, 0))

    @pytest.mark.parametrize("kind", [Deaf, Scaled, Wider])
    def test_not_one_that_does_more_or_less(self, kind: type) -> None:
        assert not is_taken(kind(LLAMA, 0))

    @pytest.mark.parametrize(("factor", "expected"), [(1.0, True), (0.5, False)])
    def test_numbers_decide(self, factor: float, expected: bool) -> None:
        config = GraniteConfig(**SIZES, num_key_value_heads=1, residual_multiplier=factor)
        assert is_taken(GraniteDecoderLayer(config, 0)) is expected

    @pytest.mark.parametrize(
        ("family", "layers"), [("qwen3", 2), ("gemma2", 0), ("olmo2", 0), ("gpt2", 0), ("phi3", 0)]
    )
    def test_by_family(self, family: str, layers: int) -> None:
        model = Model.from_transformers(families.build_tiny(family))
        found = [each for each in model.network.modules() if isinstance(each, SummedLayer)]
        assert len(found) == layers
        assert [len(each.norm_behind) for each in found] == [1, 0][:layers]
        assert [*model.network.state_dict()] == [*families.build_tiny(family).state_dict()]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "deepseek_v3", "hunyuan_v1_dense"])
def test_logits_are_those_of_sums_and_norms_apart(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, calls, added = [], [], ReferenceLayers.add_norm

    def noted(self: ReferenceLayers, *arguments: Any) -> Any:
        calls.append(arguments)
        return added(self, *arguments)

    monkeypatch.setattr(ReferenceLayers, "add_norm", noted)
    for together in (True, False):
        if not together:
            monkeypatch.setattr(model_module, "fuse_sums", lambda _: None)
        model = Model.from_transformers(families.build_tiny(family))
        layers = [each for each in model.network.modules() if isinstance(each, SummedLayer)]
        calls.clear()
        with quiet(), torch.inference_mode():
            logits.append(torch.cat(PagedRun(model).logits([torch.arange(1, count + 1) for count in SEQUENCE_TOKENS])))
        norms = [each.post_attention_layernorm for each in layers] + [
            norm for each in layers for norm in each.norm_behind
        ]
        assert len(calls) == 3 * len(norms)  # in each step of a run
        assert all(norm.is_proven for norm in norms)
        assert bool(norms) is together
    assert torch.equal(*logits)


def test_outside_a_step_nothing_changes() -> None:
    torch.manual_seed(0)
    layer, rows = LlamaDecoderLayer(LLAMA, 0).eval(), torch.randn(1, 5, 16)
    angles = torch.randn(2, 1, 5, 8)
    with torch.no_grad():
        before = layer(rows, position_embeddings=tuple(angles))
        assert is_taken(layer)
        assert torch.equal(layer(rows, position_embeddings=tuple(angles)), before)


class TestNorms:
    @pytest.fixture
    def norm(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """In a step, with how often a norm was computed alone."""
        module: Any = LlamaRMSNorm(16, eps=1e-5)
        fuse(module)
        assert isinstance(module, FusedNorm)
        self.step: Any = SimpleNamespace(layers=ReferenceKernels(), ahead={})
        monkeypatch.setattr(fused, "step_in_flight", lambda: self.step)
        self.alone = 0
        plain = self.step.layers.rms_norm

        def counted(*arguments: Any) -> torch.Tensor:
            self.alone += 1
            out: torch.Tensor = plain(*arguments)
            return out

        monkeypatch.setattr(ReferenceKernels, "rms_norm", lambda _, *arguments: counted(*arguments))
        return module

    def sum_for(self, norm: Any) -> torch.Tensor:
        return sums._sum_for(norm, torch.randn(3, 16), torch.randn(3, 16), self.step)

    @torch.no_grad()
    def test_what_was_normed_ahead_is_given_once_it_was_proven(self, norm: Any) -> None:
        for turn in range(3):
            total = self.sum_for(norm)
            self.alone = 0
            assert torch.equal(norm(total), ReferenceLayers().rms_norm(total, norm.weight, 1e-5))
            assert self.alone == (turn == 0)
            assert not self.step.ahead

    @torch.no_grad()
    @pytest.mark.parametrize("in_place", [True, False])
    def test_rows_that_changed_are_normed_again_for_good(self, norm: Any, in_place: bool) -> None:
        for _ in range(2):
            total = self.sum_for(norm)
            rows = total.add_(1) if in_place else total + 1
            assert torch.equal(norm(rows), ReferenceLayers().rms_norm(rows, norm.weight, 1e-5))
            assert not self.step.ahead
        assert norm.is_proven is False
        self.alone = 0
        self.sum_for(norm)
        assert self.alone == 0  # a sum is a sum

    @torch.no_grad()
    def test_other_rows_than_those_of_the_sum_are_normed_when_it_was_proven_too(self, norm: Any) -> None:
        norm(self.sum_for(norm))
        self.sum_for(norm)
        rows = torch.randn(3, 16)
        assert torch.equal(norm(rows), ReferenceLayers().rms_norm(rows, norm.weight, 1e-5))

    @torch.no_grad()
    def test_a_norm_of_another_type_than_the_sum_is_left_to_torch(self, norm: Any) -> None:
        total = sums._sum_for(norm, torch.randn(3, 16).bfloat16(), torch.randn(3, 16).bfloat16(), self.step)
        assert total.dtype is torch.bfloat16
        assert not self.step.ahead
