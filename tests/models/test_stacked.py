"""Dense layers that are given the same rows are one product on one tensor, and give what each gives alone."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from oracle import families
from pagoda.kernels.reference_layers import ReferenceLayers
from pagoda.models import joint, rounding
from pagoda.models import linear as linear_module
from pagoda.models.digest import weights_digest
from pagoda.models.linear import PagedLinear
from pagoda.models.model import Model
from pagoda.models.quiet import quiet
from pagoda.models.rounding import quantize
from pagoda.models.selftest import paged_error, tiny_network
from pagoda.models.stacked import StackedLinear, stack, whole

NAMES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def layers_of(network: Any, kind: type) -> list[str]:
    return [name for name, module in network.named_modules() if type(module) is kind]


def stacked_model(family: str) -> Model:
    model = Model.from_transformers(families.build_tiny(family))
    stack(model.network, model.discovered.siblings)
    return model


def group_of(*layers: nn.Module) -> Any:
    """Layers as surgery finds them, stacked if they can be."""
    network = nn.ModuleList(layers)
    for each in layers:
        if type(each) is nn.Linear:
            each.__class__ = PagedLinear
    stack(network, [tuple(str(index) for index in range(len(layers)))])
    return network


class TestWhatIsStacked:
    @pytest.mark.parametrize(("family", "count"), [("llama", 5), ("qwen2", 5), ("deepseek_v3", 4), ("gpt_neox", 0)])
    def test_all_but_what_is_alone(self, family: str, count: int) -> None:
        model = stacked_model(family)
        assert len(layers_of(model.network.base_model.layers[0], StackedLinear)) == count

    def test_weights_are_parts_of_one_tensor_and_nothing_about_them_changes(self) -> None:
        network = families.build_tiny("qwen2")
        before = copy.deepcopy(network)
        model = Model.from_transformers(network)
        digest, nbytes = weights_digest(model.network), model.weight_nbytes
        stack(model.network, model.discovered.siblings)
        layer = model.network.model.layers[0]
        for parts in (
            [layer.get_submodule(name).weight for name in NAMES],
            [layer.get_submodule(name).bias for name in NAMES],
            [layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight],
        ):
            assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
            assert parts[0].untyped_storage().nbytes() == sum(part.nbytes for part in parts)
            assert torch.equal(whole(parts), torch.cat(parts))
        assert weights_digest(model.network) == digest
        del model.__dict__["weight_nbytes"]
        assert model.weight_nbytes == nbytes
        state = model.network.state_dict()
        assert list(state) == list(before.state_dict())
        assert all(torch.equal(state[name], tensor) for name, tensor in before.state_dict().items())
        # The network of transformers has the same parameters, not older ones.
        assert network.model.layers[0].mlp.up_proj.weight is layer.mlp.up_proj.weight

    def test_what_is_stacked_stays_where_it_is(self) -> None:
        network = families.build_tiny("llama")
        places = []
        for _ in range(2):
            model = Model.from_transformers(network)
            stack(model.network, model.discovered.siblings)
            places.append(network.model.layers[0].self_attn.k_proj.weight.data_ptr())
        assert places[0] == places[1]

    @pytest.mark.parametrize(
        "layers",
        [
            (nn.Linear(4, 3), nn.Linear(4, 2, bias=False)),
            (nn.Linear(4, 3), nn.Linear(4, 2, dtype=torch.bfloat16)),
            (nn.Linear(4, 3), nn.Linear(4, 2, device="meta")),
            (nn.Linear(4, 3), nn.Linear(5, 3)),
            (nn.Linear(4, 3), type("Adapted", (nn.Linear,), {})(4, 3)),
            (nn.Linear(4, 3), nn.LayerNorm(4)),
        ],
        ids=["biases", "types", "devices", "depths", "classes", "norms"],
    )
    def test_not_layers_that_differ(self, layers: tuple[nn.Module, ...]) -> None:
        places = [each.weight.data_ptr() for each in layers]
        network = group_of(*layers)
        assert not layers_of(network, StackedLinear)
        assert [each.weight.data_ptr() for each in layers] == places

    def test_not_weights_that_somebody_else_has_too(self) -> None:
        layers = [nn.Linear(4, 3) for _ in range(2)]
        network = nn.ModuleDict({"first": layers[0], "second": layers[1], "head": nn.Linear(4, 3)})
        network["head"].weight = layers[0].weight
        for each in layers:
            each.__class__ = PagedLinear
        stack(network, [("first", "second")])
        assert not layers_of(network, StackedLinear)

    def test_not_quantized_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rounding, "MIN_ROWS", 1)
        network = families.build_tiny("llama")
        quantize(network, "int8")
        model = Model.from_transformers(network)
        stack(model.network, model.discovered.siblings)
        assert not layers_of(model.network, StackedLinear)

    def test_not_without_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(torch, "cat", full)
        assert not layers_of(group_of(nn.Linear(4, 3), nn.Linear(4, 2)), StackedLinear)


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "qwen3", "deepseek_v3", "bart", "jamba", "qwen2_moe", "gemma3_text"]
)
def test_a_model_through_pages_gives_the_logits_of_transformers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    whole_model = Model.from_transformers

    def stacked(network: Any) -> Model:
        model = whole_model(network)
        stack(model.network, model.discovered.siblings)
        found.append(model.network)
        return model

    monkeypatch.setattr(Model, "from_transformers", stacked)
    error, tolerance = paged_error(families.build_tiny(family))
    assert error <= tolerance
    layers = [module for module in found[0].modules() if isinstance(module, StackedLinear)]
    assert layers
    assert all(layer.is_proven for layer in layers if layer is not layer.siblings[0])


def test_parts_are_whole_when_they_follow_one_another() -> None:
    first, second = torch.arange(10.0).view(5, 2).split([3, 2])
    assert torch.equal(whole([first, second]), torch.arange(10.0).view(5, 2))
    for others in ([second, first], [first, first], [first, second.clone()], [first, second.flip(1)], [second, second]):
        assert whole(others) is None
    assert whole([first[:, :1], second]) is None


class TestSteps:
    @pytest.fixture
    def sizes(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """How many columns products have, of the steps that layers are in."""
        sizes: list[int] = []
        step = SimpleNamespace(ahead={}, layers=ReferenceLayers())
        product = nn.functional.linear

        def noted(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            sizes.append(len(weight))
            return product(input, weight, bias)

        monkeypatch.setattr(joint, "step_in_flight", lambda: step)
        monkeypatch.setattr(linear_module.functional, "linear", noted)
        return sizes

    @pytest.mark.parametrize("bias", [True, False])
    def test_one_product_computes_all(self, sizes: list[int], bias: bool) -> None:
        layers = [nn.Linear(8, columns, bias=bias) for columns in (5, 3, 4)]
        expected = [[each.weight.clone(), None if each.bias is None else each.bias.clone()] for each in layers]
        group_of(*layers)
        for turn in range(2):
            rows = torch.randn(1, 6, 8)
            sizes.clear()
            outs = [layer(rows) for layer in layers]
            assert sizes == ([12, 3, 4] if turn == 0 else [12])  # proved once
            for out, (weight, added) in zip(outs, expected, strict=True):
                torch.testing.assert_close(out, nn.functional.linear(rows, weight, added))
                assert out.stride(-2) == 12

    @pytest.mark.parametrize("name", ["weight", "bias"])
    def test_weights_that_were_moved_apart_are_read_where_they_are(self, sizes: list[int], name: str) -> None:
        layers = [nn.Linear(8, columns) for columns in (5, 3)]
        group_of(*layers)
        moved = layers[1].get_parameter(name)
        moved.data = moved.data + 1
        rows = torch.randn(6, 8)
        sizes.clear()
        outs = [layer(rows) for layer in layers]
        assert 8 not in sizes
        for out, layer in zip(outs, layers, strict=True):
            assert torch.equal(out, nn.functional.linear(rows, layer.weight, layer.bias))

    def test_a_copy_has_weights_of_its_own(self, sizes: list[int]) -> None:
        network = group_of(nn.Linear(8, 5), nn.Linear(8, 3))
        twin = copy.deepcopy(network)
        with torch.no_grad():
            twin[1].weight += 1
        rows = torch.randn(6, 8)
        for each in (network, twin):
            first, second = each[0](rows), each[1](rows)
            torch.testing.assert_close(first, nn.functional.linear(rows, each[0].weight, each[0].bias))
            torch.testing.assert_close(second, nn.functional.linear(rows, each[1].weight, each[1].bias))
        assert not torch.equal(network[1].weight, twin[1].weight)

    def test_rows_that_changed_part_them(self, sizes: list[int]) -> None:
        layers = [nn.Linear(8, columns) for columns in (5, 3)]
        group_of(*layers)
        rows = torch.randn(6, 8)
        layers[0](rows)
        rows += 1
        assert torch.equal(layers[1](rows), nn.functional.linear(rows, layers[1].weight, layers[1].bias))
        assert all(type(each) is PagedLinear for each in layers)


def test_on_a_device_layers_are_stacked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's device without numbers stands for a GPU; proofs by numbers are none there."""
    monkeypatch.setattr("pagoda.models.model.fuse", lambda _: None)
    network = tiny_network(families.build_tiny("llama").config)
    discovered = Model.from_transformers(network).discovered
    with quiet():
        model = Model(network.to("meta"), discovered, None)
    assert len(layers_of(model.network, StackedLinear)) == 5 * network.config.num_hidden_layers
