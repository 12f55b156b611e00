"""Layers that are given the same rows are computed together, and give what each gives alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

from oracle import families
from pagoda import LLM, SamplingParams
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.reference_layers import ReferenceLayers
from pagoda.models import coded, joint, rounding
from pagoda.models import model as model_module
from pagoda.models.coded import CodedLinear
from pagoda.models.discovery import discover
from pagoda.models.joint import JointLinear, join, watch_siblings
from pagoda.models.model import Model
from pagoda.models.quiet import quiet
from pagoda.models.rounding import quantize
from pagoda.models.selftest import SEQUENCE_TOKENS, PagedRun


@pytest.fixture(autouse=True)
def small_matrices_too(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr(rounding, "MIN_ROWS", 1)


def siblings_of(family: str) -> set[tuple[str, ...]]:
    """Names within a layer."""
    groups = discover(families.build_tiny(family).config).siblings
    return {tuple(name.rpartition(".")[2] for name in group) for group in groups}


@pytest.mark.parametrize(
    ("family", "siblings"),
    [
        ("llama", {("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")}),
        ("qwen3", {("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")}),  # with norms in between
        ("gpt_neox", set()),  # one layer makes all three
        ("deepseek_v3", {("q_a_proj", "kv_a_proj_with_mqa"), ("gate_proj", "up_proj")}),
        ("bart", {("q_proj", "k_proj", "v_proj"), ("k_proj", "v_proj")}),  # these two of an encoder's tokens
    ],
)
def test_layers_that_are_given_the_same_rows_are_found(family: str, siblings: set[tuple[str, ...]]) -> None:
    assert siblings_of(family) == siblings


class TestWatching:
    class Network(nn.Module):
        def __init__(self, *calls: str) -> None:
            super().__init__()
            self.calls = calls
            self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, rows: torch.Tensor) -> None:
            for call in self.calls:
                if call == "copy":
                    rows = rows.clone()
                elif call == "apart":
                    self.third(rows.clone())
                else:
                    self.get_submodule(call)(rows)

    @pytest.mark.parametrize(
        ("calls", "groups"),
        [
            (("first", "second", "third"), (("first", "second", "third"),)),
            (("first", "copy", "second", "third"), (("second", "third"),)),
            (("first", "second", "copy", "first", "second"), (("first", "second"),)),
            (("first", "second", "copy", "first", "third"), ()),
            (("first", "apart", "second"), (("first", "second"),)),
            (("first", "first"), ()),
        ],
    )
    def test_rows_are_the_same_tensor(self, calls: tuple[str, ...], groups: tuple[Any, ...]) -> None:
        network = self.Network(*calls)
        with torch.no_grad(), watch_siblings(network) as siblings:
            network(torch.zeros(2, 4))
        assert siblings.groups() == groups


class TestParts:
    @pytest.mark.parametrize("in_parts", [True, False])
    def test_what_layers_give_is_a_part_of_wider_rows(self, in_parts: bool) -> None:
        layer = nn.Linear(4, 3)
        rows = torch.randn(2, 5, 4)
        with torch.no_grad(), watch_siblings(layer, in_parts):
            out = layer(rows)
        assert out.is_contiguous() is not in_parts
        assert torch.equal(out, layer(rows))
        assert not layer._forward_hooks

    def test_networks_that_do_not_take_them_have_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forward = LlamaMLP.forward

        def strict(self: Any, x: torch.Tensor) -> torch.Tensor:
            self.gate_proj(x).view(-1)
            return forward(self, x)

        monkeypatch.setattr(LlamaMLP, "forward", strict)
        discovered = discover(families.build_tiny("llama").config)
        assert discovered.siblings == ()
        assert len(discovered.rules) == families.build_tiny("llama").config.num_hidden_layers


@pytest.mark.parametrize("family", ["llama", "qwen2", "deepseek_v3", "qwen2_moe", "jamba"])
def test_logits_are_those_of_layers_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = []
    for together in (True, False):
        if not together:
            monkeypatch.setattr(model_module, "join", lambda *_: None)
        network = families.build_tiny(family)
        quantize(network, "int4")
        model = Model.from_transformers(network)
        assert any(isinstance(each, JointLinear) for each in model.network.modules()) is together
        with quiet(), torch.inference_mode():
            logits.append(torch.cat(PagedRun(model).logits([torch.arange(1, count + 1) for count in SEQUENCE_TOKENS])))
    assert torch.equal(*logits)


class TestSteps:
    @pytest.fixture
    def step(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """One in flight, with the sizes of the calls of its kernels."""
        kernels, sizes = ReferenceLayers(), list[int]()

        def noted(input: torch.Tensor, layers: Any) -> list[torch.Tensor]:
            sizes.append(len(layers))
            return kernels.coded_linears(input, layers)

        step = SimpleNamespace(ahead={}, layers=SimpleNamespace(coded_linears=noted, coded_linear=kernels.coded_linear))
        monkeypatch.setattr(joint, "step_in_flight", lambda: step)
        monkeypatch.setattr(coded, "kernels_in_flight", lambda: step.layers)
        return SimpleNamespace(ahead=step.ahead, sizes=sizes)

    @pytest.fixture
    def layers(self) -> tuple[Any, Any]:
        network = families.build_tiny("llama")
        quantize(network, "int8")
        names = ("model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj")
        join(network, [names, ("model.norm", "lm_head")])
        assert type(network.lm_head) is CodedLinear  # a norm is none
        return network.get_submodule(names[0]), network.get_submodule(names[1])

    def test_one_call_computes_all(self, step: SimpleNamespace, layers: tuple[Any, Any]) -> None:
        for _ in range(2):
            rows = torch.randn(3, layers[0].in_features)
            for layer in layers:
                alone = ReferenceLayers().coded_linear(rows, layer.coded, layer.bias)
                assert torch.equal(layer(rows), alone)
            assert not step.ahead
        assert step.sizes == [2, 2]

    @pytest.mark.parametrize("shape", [(3,), (1, 9), ()])
    def test_rows_that_changed_part_them(
        self, step: SimpleNamespace, layers: tuple[Any, Any], shape: tuple[int, ...]
    ) -> None:
        first, second = layers
        rows = torch.randn(*shape, first.in_features)
        first(rows)
        rows += torch.randn_like(rows)
        assert torch.equal(second(rows), ReferenceLayers().coded_linear(rows, second.coded, second.bias))
        assert type(first) is type(second) is CodedLinear

    def test_layers_of_other_rows_part(self, step: SimpleNamespace, layers: tuple[Any, Any]) -> None:
        first, second = layers
        rows, others = torch.randn(2, 3, first.in_features)
        first(rows)
        assert torch.equal(second(others), ReferenceLayers().coded_linear(others, second.coded, second.bias))
        assert type(first) is type(second) is CodedLinear
        first(rows), second(rows)
        assert step.sizes == [2]

    def test_outside_a_step_each_computes_for_itself(
        self, layers: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coded.CodedLinear, "dense", lambda self: self.coded.decode())
        rows = torch.randn(3, layers[0].in_features)
        assert torch.equal(layers[1](rows), nn.functional.linear(rows, layers[1].coded.decode()))


def test_a_step_of_an_engine_makes_fewer_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    whole = NativeKernels.coded_linears

    def noted(self: NativeKernels, input: torch.Tensor, layers: Any) -> list[torch.Tensor]:
        sizes.append(len(layers))
        return whole(self, input, layers)

    monkeypatch.setattr(NativeKernels, "coded_linears", noted)
    network = families.build_tiny("llama")
    quantize(network, "int8")
    llm = LLM(Model.from_transformers(network), kv_cache_memory_bytes=1 << 20)
    llm.generate([[1, 2, 3]], SamplingParams(max_tokens=1))  # which proves what is given together
    sizes.clear()
    llm.generate([[3, 2, 1]], SamplingParams(max_tokens=1))
    assert sizes == [3, 1, 2, 1] * network.config.num_hidden_layers + [1]
