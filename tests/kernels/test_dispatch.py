"""Any registered backend can be chosen by its name, and says what it leaves to the reference."""

import logging
import sys

import pytest
import torch

from pagoda.config import Environment
from pagoda.errors import ConfigError, KernelUnavailableError
from pagoda.formats.mixed import MixedFormat
from pagoda.formats.page import PageGeometry
from pagoda.formats.plain import BF16, FP32
from pagoda.formats.scaled import INT8
from pagoda.kernels.base import AttentionRule, AttentionUse, LayerPages
from pagoda.kernels.choice import choose_for
from pagoda.kernels.dispatch import choose_kernels, find_backend
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.reference import ReferenceKernels
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.base import Axis, Layout, Plane
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.registry import names, registered
from toys import TOY_FORMAT, ToyKernels

USE = AttentionUse(AttentionRule(0.125))
GROUPED = AttentionLayout(2, 32, 32)


@pytest.fixture
def _toys():
    with registered("kernels", "toy", "toys:ToyKernels"), registered("kernels", "missing", "toys:MissingKernels"):
        yield


def layer_of(format, layout=GROUPED, **more):
    geometry = PageGeometry(LayerGroup(Reach.FULL, None, (layout,)), format, 16)
    return LayerPages(torch.zeros(1, geometry.page_nbytes, dtype=torch.uint8), geometry, 0, **more)


@pytest.mark.usefixtures("_toys")
@pytest.mark.parametrize("name", ["native", "reference", "toy"])
def test_a_registered_name_chooses_its_backend(name):
    assert name in names("kernels")
    kernels = choose_kernels(Environment(kernels=name))
    assert kernels.name.startswith(name)


@pytest.mark.usefixtures("_toys")
def test_a_forced_backend_that_cannot_run_here_says_why(caplog):
    with pytest.raises(KernelUnavailableError, match="toy box"):
        choose_kernels(Environment(kernels="missing"))
    assert not caplog.records


def test_without_the_native_kernels_the_reference_runs_and_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pagoda.kernels._native", None)
    monkeypatch.delattr("pagoda.kernels._native", raising=False)
    with caplog.at_level(logging.WARNING):
        assert isinstance(choose_kernels(Environment()), ReferenceKernels)
    assert "slow reference kernels: The native kernels are not part of" in caplog.text
    with pytest.raises(KernelUnavailableError):
        find_backend(Environment(kernel_isa="avx2"))
    with pytest.raises(KernelUnavailableError):
        find_backend(Environment(), deterministic=True)


@pytest.mark.usefixtures("_toys")
def test_deterministic_is_refused_by_a_backend_that_is_not():
    with pytest.raises(ConfigError, match="leave PAGODA_KERNELS=toy out"):
        choose_kernels(Environment(kernels="toy"), deterministic=True)


def test_a_name_that_is_not_registered_is_refused():
    with pytest.raises(ConfigError, match="choose auto or one of: native, reference"):
        choose_kernels(Environment(kernels="toy"))


def test_a_name_is_registered_once_and_for_a_while():
    with registered("format", "toy", "toys:TOY_FORMAT"):
        assert "toy" in names("format")
        with pytest.raises(ConfigError, match="already"), registered("format", "toy", "toys:TOY_FORMAT"):
            pass
    assert "toy" not in names("format")


def test_a_backend_of_attention_alone_has_plain_layers():
    layers = ToyKernels().layers
    rows = torch.randn(3, 8)
    assert not layers.takes_linear(rows, rows)
    assert torch.equal(layers.gated_silu(rows, rows), torch.nn.functional.silu(rows) * rows)
    assert ToyKernels().recorder is None


class Sideways(Layout):
    """Values in the order of keys."""

    @classmethod
    def examples(cls):
        return {"sideways": cls()}

    @property
    def planes(self):
        return (Plane("key", 2, 32, Axis.CHANNEL), Plane("value", 2, 32, Axis.CHANNEL))

    def resumable_tokens(self, num_matched_tokens):
        return num_matched_tokens


@pytest.mark.parametrize(
    ("layer", "use", "reason"),
    [
        (layer_of(TOY_FORMAT), USE, "do not read toy pages"),
        (layer_of(MixedFormat("toy mix", FP32, BF16)), USE, "keys in fp32 beside values in bf16"),
        (layer_of(FP32, constants=object()), USE, "without constants"),
        (layer_of(BF16, Sideways()), USE, "not laid out"),
        (layer_of(BF16), AttentionUse(AttentionRule(1, slopes=(1.0,)), has_biases=True), "slopes and biases"),
    ],
    ids=["format", "pair", "constants", "planes", "use"],
)
def test_the_native_kernels_say_what_they_cannot_do(layer, use, reason):
    backend = NativeKernels()
    assert reason in backend.obstacle(layer, use)
    choice = choose_for(backend, layer.geometry.group, [(layer_of(BF16), USE), (layer, use)])
    assert isinstance(choice.kernels, ReferenceKernels)
    assert reason in choice.notice
    with pytest.raises(ConfigError, match=f"full attention: .*{reason}"):
        choose_for(NativeKernels(deterministic=True), layer.geometry.group, [(layer, use)])


def test_what_the_native_kernels_can_do_they_do():
    backend = NativeKernels()
    for format in (BF16, FP32, INT8, MixedFormat("int8/bf16", INT8, BF16)):
        choice = choose_for(backend, layer_of(format).geometry.group, [(layer_of(format), USE)])
        assert choice.kernels is backend
        assert choice.notice is None
