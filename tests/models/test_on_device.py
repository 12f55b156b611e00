"""No tensor of the host meets one of the device on the way through a model: torch's device without numbers shows it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from oracle.families import build_tiny
from pagoda.formats.page import page_geometries
from pagoda.formats.plain import own_format
from pagoda.formats.state import StateGeometry
from pagoda.kernels.base import GroupView
from pagoda.kernels.reference import ReferenceKernels
from pagoda.models import model as model_module
from pagoda.models import rounding
from pagoda.models.attention import PagedStep
from pagoda.models.coded import coded_weights
from pagoda.models.fused import FusedNorm
from pagoda.models.joint import JointLinear
from pagoda.models.model import Model
from pagoda.models.rounding import quantize
from pagoda.models.sites import bind_sites
from pagoda.models.states import StepStates, typed_states

DEVICE = torch.device("meta")
FAMILIES = (
    *("llama", "qwen2", "gemma2", "gemma3_text", "gpt2", "bloom", "mpt", "falcon", "opt", "phi3", "cohere2"),
    *("minicpm3", "llama4_text", "mamba", "mamba2", "falcon_h1", "lfm2"),
)


class Looking(ReferenceKernels):
    """Kernels that compute nothing, and see where tensors lie."""

    def store(self, key, value, layer, view, finite=None):
        assert {each.device for each in (key, value, finite, layer.pages) if each is not None} == {DEVICE}

    def attend(self, query, layer, view, rule, sinks=None, biases=None):
        assert {each.device for each in (query, sinks, biases, layer.pages) if each is not None} == {DEVICE}
        return query.new_empty(query.shape[0], query.shape[1], layer.value_width)


class LookingAtCodes(Looking):
    """And at codes, which torch's device without numbers keeps none of."""

    def coded_linears(self, input, layers):
        self._look(input, *(each for weight, bias in layers for each in (weight.data, bias) if each is not None))
        return [input.new_empty(*input.shape[:-1], weight.rows) for weight, _ in layers]

    def coded_rows(self, weight, numbers, dtype):
        self._look(weight.data, numbers)
        return torch.empty(*numbers.shape, weight.depth, dtype=dtype, device=DEVICE)

    def coded_heads(self, input, weight, first):
        self._look(input, weight.data)
        return input.new_empty(*input.shape[:2], weight.depth)

    def coded_experts(self, input, weight, experts, bias):
        self._look(input, weight.data, experts)
        return input.new_empty(*experts.shape, weight.rows)

    def _look(self, *tensors):
        assert {each.device for each in tensors} == {DEVICE}


def table(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_is_computed_lies_on_the_device(family):
    model = Model.from_transformers(build_tiny(family))  # looks at numbers
    for module in model.network.modules():
        if isinstance(module, FusedNorm):
            module.is_proven = True  # which a first step would see
    model.network.to(DEVICE)
    check_forward(model, Looking())


@pytest.mark.parametrize("family", ["llama", "qwen2_moe", "minicpm3", "mamba"])
def test_codes_are_read_where_they_were_moved_to(family, monkeypatch):
    monkeypatch.setattr(rounding, "MIN_ROWS", 1)
    network = build_tiny(family)
    quantize(network, "int4")
    network.to(DEVICE)
    held = coded_weights(network)
    assert held
    for each in held.values():  # a card's parameters stay the same objects, and those of this device do not
        each.data = nn.Parameter(each.data.to(DEVICE), requires_grad=False)
    monkeypatch.setattr(model_module, "fuse", lambda _: None)  # looks at numbers, as does this
    monkeypatch.setattr(JointLinear, "_prove", lambda *_: True)
    check_forward(Model.from_transformers(network), LookingAtCodes())


def check_forward(model, kernels):
    geometries = page_geometries(model.spec, own_format(torch.float32), 16)
    pages = [torch.empty(8, each.page_nbytes, dtype=torch.uint8, device=DEVICE) for each in geometries]
    sites = bind_sites(model.discovered, kernels, geometries, pages, {}).sites
    view = GroupView(table(0, 1), table(0, 1, 2), table(0, 5, 6), table(5, 3))
    states = None
    if model.spec.states:
        geometry = StateGeometry(model.spec.states, 4)
        slots = torch.empty(3, geometry.page_nbytes, dtype=torch.uint8, device=DEVICE)
        states = StepStates(typed_states(geometry, slots, torch.float32), view, [(), ()])
    step = PagedStep(kernels.layers, sites, (view,) * max(len(geometries), 1), states)
    logits = model.forward(torch.arange(6), torch.tensor([0, 1, 2, 3, 4, 2]), torch.tensor([4, 5]), step)
    assert logits.device == DEVICE
    assert logits.shape == (2, model.vocab_size)
