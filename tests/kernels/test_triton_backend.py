"""The backend for GPUs, interpreted: what its kernels are compiled for."""

from dataclasses import replace

import pytest
import torch

from kernels.cases import NAN_BYTE
from kernels.interpreted import TritonAttention
from pagoda.formats.mixed import K8V4
from pagoda.formats.page import PageGeometry
from pagoda.formats.plain import FP32
from pagoda.formats.scaled import INT8
from pagoda.kernels.base import AttentionRule, LayerPages
from pagoda.kernels.triton import attention
from pagoda.kernels.triton.backend import INTERPRETER, TritonKernels
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import LayerGroup, Reach

RULE = AttentionRule(0.25)
SIZES = {
    "kv_heads": 1,
    "group": 2,
    "key_width": 16,
    "value_width": 16,
    "page_tokens": 16,
    "sequences": ((20, 1), (0, 5)),
}


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setenv(INTERPRETER, "1")
    return TritonKernels()


def layers_of(layer, others=()):
    """Four layers on the same number of pages, the last of which has two heads; `others` as of `PageGeometry`."""
    layouts = (*layer.geometry.group.layouts, AttentionLayout(2, 16, 16))
    geometry = PageGeometry(LayerGroup(Reach.FULL, None, layouts), layer.format, 16, others)
    pages = torch.full((len(layer.pages), geometry.page_nbytes), NAN_BYTE, dtype=torch.uint8)
    return [LayerPages(pages, geometry, index) for index in range(len(layouts))]


@pytest.mark.parametrize("format", [FP32, INT8, K8V4])
def test_layers_lie_where_the_page_says(format, kernels, shape, make_case):
    case = make_case(shape(format=format, dtype=format.model_dtype(), **SIZES))
    for layer, plain in zip(layers_of(case.layer)[:3], layers_of(case.layer)[:3], strict=True):
        kernels.store(case.key, case.value, layer, case.whole)
        TritonAttention().store(case.key, case.value, plain, case.whole)
        assert torch.equal(layer.pages, plain.pages)
        expected = TritonAttention().attend(case.query, plain, case.view, RULE)
        assert torch.equal(kernels.attend(case.query, layer, case.view, RULE), expected)


def test_layers_that_are_alike_are_compiled_once(kernels, shape, make_case, monkeypatch):
    """Kernels are compiled anew for every other shape."""
    case = make_case(shape(format=FP32, **SIZES))
    shapes = []

    class Kernel:
        def __getitem__(self, _):
            return lambda *arguments, **_: shapes.append(arguments[-1:])

    for name in ("attend_few", "reduce_splits"):
        monkeypatch.setattr(attention, name, Kernel())
    layers = layers_of(case.layer, others=((1, INT8),))
    found = []
    for layer in layers:
        shapes.clear()
        query = case.query.repeat(1, layer.key.plane.num_heads, 1)
        kernels.attend(query, layer, case.view, RULE)
        found.append(tuple(shapes))
    first, other_format, third, wider = found
    assert first
    assert first == third
    assert len({first, other_format, wider}) == 3


def test_constants_stay_those_of_the_layer(kernels, shape, make_case):
    case = make_case(shape(format=INT8, dtype=INT8.model_dtype(), has_constants=True, **SIZES))
    layer = replace(case.layer)
    expected = TritonAttention().attend(case.query, layer, case.view, RULE)
    assert torch.equal(kernels.attend(case.query, layer, case.view, RULE), expected)
