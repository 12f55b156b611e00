"""What every registered kernel backend must do, over every format and layout: what the reference does.

A backend that cannot run here is skipped by its own word, and so is what it says it cannot do; the reference always
runs.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property

import pytest
import torch

from kernels.cases import Case, Shape, build, starts
from kernels.rounding import tolerance
from pagoda.config import Environment
from pagoda.errors import KernelUnavailableError
from pagoda.kernels.base import CHAIN, AttentionRule, AttentionUse, GroupView, Kernels
from pagoda.kernels.layers import LayerKernels
from pagoda.kernels.reference import ReferenceKernels
from pagoda.kernels.reference_layers import ReferenceLayers
from pagoda.layouts.spec import Reach
from pagoda.registry import REGISTRY, lookup

SEQUENCES = ((70, 1), (0, 40), (300, 5), (3, 0), (0, 1))
GROUP = 3
RULES = {
    "full": AttentionRule(0.125),
    "soft cap": AttentionRule(0.125, soft_cap=20.0),
    "window": AttentionRule(0.125, Reach.SLIDING, 30),
    "sinks and window": AttentionRule(0.125, Reach.SLIDING, 30, sink_tokens=5),
    "chunks": AttentionRule(0.125, Reach.CHUNKED, 24),
    "slopes": AttentionRule(0.125, slopes=(0.5, 0.25, 0.125)),
    "encoder": AttentionRule(0.125, Reach.ENCODER),
}
LAYOUTS = {
    f"{name}, {example}": layout
    for name in REGISTRY["layout"]
    for example, layout in lookup("layout", name).examples().items()
}

every_format = pytest.mark.parametrize("format", REGISTRY["format"])
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@pytest.fixture(params=REGISTRY["kernels"])
def backend(request):
    environment = replace(Environment.read(), kernels=request.param)
    if request.param == "reference":
        return lookup("kernels", "reference").of(environment, False)
    try:
        return lookup("kernels", request.param).of(environment, False)
    except KernelUnavailableError as error:
        pytest.skip(str(error))


@cache
def case_of(format, layout):
    """Stored by the reference, once for all backends; skipped if the format cannot keep the layout."""
    format = lookup("format", format)
    if obstacle := next(filter(None, map(format.obstacle, layout.planes)), None):
        pytest.skip(obstacle)
    dtype = format.model_dtype()
    return build(Shape.of(layout, format=format, dtype=dtype, sequences=SEQUENCES, group=GROUP, page_tokens=16))


def serves(backend, case, use):
    return backend.obstacle(case.layer, use) is None


def needs(backend, case, use):
    if obstacle := backend.obstacle(case.layer, use):
        pytest.skip(obstacle)


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked of a backend."""

    case: Case
    view: GroupView
    rule: AttentionRule
    sinks: torch.Tensor | None = None
    biases: torch.Tensor | None = None

    def of(self, backend):
        return backend.attend(self.case.query, self.case.layer, self.view, self.rule, self.sinks, self.biases)

    @cached_property
    def expected(self):
        return self.of(ReferenceKernels())

    def check(self, backend):
        case = self.case
        if not serves(backend, case, AttentionUse(self.rule, self.sinks is not None, self.biases is not None)):
            return
        # The reference would be compared with itself.
        actual = self.expected if backend.name == "reference" else self.of(backend)
        assert actual.dtype is case.query.dtype
        assert actual.is_contiguous()
        largest = (case.key if case.value is None else case.value).abs().max()
        limit = tolerance(case.shape, self.rule) * float(largest)
        torch.testing.assert_close(actual.float(), self.expected.float(), rtol=0, atol=limit)


@cache
def asked_of_all(format, layout):
    """Rules, sinks and biases, over sequences as most are."""
    case = case_of(format, layout)
    sinks, biases = torch.linspace(-1, 3, case.shape.heads), torch.randn(case.shape.heads, 20)
    return [
        *(Asked(case, case.view, slopes_for(rule, case)) for rule in RULES.values()),
        Asked(case, case.view, RULES["full"], sinks=sinks),
        Asked(case, case.view, RULES["full"], biases=biases),
    ]


@cache
def asked_of_trees(format, layout):
    """Tokens of which not all see one another, and such as are stored in another order."""
    case = case_of(format, layout)
    ancestors = torch.full((len(case.query),), CHAIN)
    ancestors[41:46] = torch.tensor([0, 0, 0b1, 0b10, 0b101])
    positions = torch.cat([torch.tensor([70]), torch.arange(40), torch.tensor([300, 300, 301, 301, 302, 0])]).int()
    tree = replace(case.view, ancestors=ancestors, positions=positions)
    slots = torch.cat([torch.tensor([4]), torch.arange(40).flip(0), torch.tensor([1, 304, 17, 16, 200, 0])]).int()
    return [
        *(Asked(case, tree, slopes_for(rule, case)) for rule in RULES.values()),
        Asked(case, replace(case.view, slots=slots), RULES["full"]),
    ]


def slopes_for(rule, case):
    return rule if rule.slopes is None else replace(rule, slopes=rule.slopes[:GROUP] * case.shape.kv_heads)


def test_it_is_a_backend(backend):
    assert isinstance(backend, Kernels)
    assert backend.name
    assert isinstance(backend.layers, LayerKernels)


def test_what_most_models_need_is_served(backend):
    """Else nothing below would be tested."""
    case = case_of("fp32", LAYOUTS["attention, gqa"])
    assert serves(backend, case, AttentionUse(RULES["full"])) or serves(
        backend, case_of("bf16", LAYOUTS["attention, gqa"]), AttentionUse(RULES["full"])
    )


@every_format
@every_layout
def test_it_attends_as_the_reference_does(backend, format, layout):
    needs(backend, case_of(format, layout), AttentionUse(RULES["full"]))
    for asked in asked_of_all(format, layout):
        asked.check(backend)


@every_format
@every_layout
def test_it_sees_of_trees_and_slots_what_the_reference_sees(backend, format, layout):
    needs(backend, case_of(format, layout), AttentionUse(RULES["full"]))
    for asked in asked_of_trees(format, layout):
        asked.check(backend)


@every_format
@every_layout
def test_it_stores_what_can_be_read(backend, format, layout):
    """In the tokens that are new, and nowhere else."""
    case = case_of(format, layout)
    needs(backend, case, AttentionUse(RULES["full"]))
    counts = [7, 40, 1, 0, 1]
    rows = sum(counts)
    view = replace(case.whole, query_starts=starts(counts))
    key, value = case.key.flip(0)[:rows], None if case.value is None else case.value.flip(0)[:rows]
    expected, actual = (replace(case.layer, pages=case.layer.pages.clone()) for _ in range(2))
    ReferenceKernels().store(key, value, expected, view)
    backend.store(key, value, actual, view)
    changed = (actual.pages != case.layer.pages).any(dim=0)
    slots = [case.layer.key, case.layer.value]
    assert not changed[: slots[0].offset].any()
    assert not changed[slots[-1].offset + slots[-1].nbytes :].any()
    used = case.whole.page_indices.long()
    for slot in slots:
        mine, theirs = (
            each.format.decode(each.pages[used, slot.offset : slot.offset + slot.nbytes], slot.plane)
            for each in (actual, expected)
        )
        assert torch.equal(mine.isnan(), theirs.isnan())
        bound = case.layer.format.error_bound(theirs.nan_to_num().flatten(0, 1), slot.plane).view_as(theirs)
        assert ((mine - theirs).nan_to_num().abs() <= bound).all()


@every_format
def test_it_marks_sequences_that_store_what_is_not_finite(backend, format):
    case = case_of(format, LAYOUTS["attention, gqa"])
    needs(backend, case, AttentionUse(RULES["full"]))
    finite = torch.ones(len(SEQUENCES), dtype=torch.uint8)
    key = case.key.clone()
    key[71 + 3, 1, 5] = float("nan")
    backend.store(key, case.value, case.blank(), case.whole, finite)
    assert finite.tolist() == [1, 0, 1, 1, 1]


@pytest.mark.parametrize("rule", ["window", "chunks", "sinks and window"])
def test_pages_out_of_reach_are_not_read(backend, rule):
    case = case_of("fp32", LAYOUTS["attention, gqa"])
    needs(backend, case, AttentionUse(RULES[rule]))
    tables, first = case.view.page_indices.clone(), int(case.view.page_starts[2])
    tables[first + (rule == "sinks and window") : first + 16] = -1
    Asked(case, replace(case.view, page_indices=tables), RULES[rule]).check(backend)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_its_layers_compute_what_the_reference_does(backend, dtype):
    layers, plain = backend.layers, ReferenceLayers()
    input, weight = rows(5, 64).to(dtype), (rows(96, 64, seed=1) / 8).to(dtype)
    close = {"rtol": 2.0**-6, "atol": 2.0**-6} if dtype is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    if layers.takes_linear(input, weight):
        torch.testing.assert_close(layers.linear(input, weight, None), plain.linear(input, weight, None), **close)
    if layers.takes_gated_linear(input, weight, weight):
        expected = plain.gated_linear(input, weight, weight)
        torch.testing.assert_close(layers.gated_linear(input, weight, weight), expected, **close)
    norm = rows(64, seed=2).to(dtype)
    torch.testing.assert_close(layers.rms_norm(input, norm, 1e-6), plain.rms_norm(input, norm, 1e-6), **close)
    torch.testing.assert_close(layers.gated_silu(input, input), plain.gated_silu(input, input), **close)
    heads, matrices = rows(5, 4, 32).to(dtype), rows(4, 32, 48, seed=3).to(dtype) / 6
    expected = plain.multiply_heads(heads, matrices)
    torch.testing.assert_close(layers.multiply_heads(heads, matrices), expected, **close)
    turned, angles = rows(1, 4, 5, 32).to(dtype), rows(1, 5, 32, seed=4).to(dtype)
    assert plain.takes_rotation(turned, angles)
    if layers.takes_rotation(turned, angles):
        expected = plain.rotate(turned, angles, angles)
        torch.testing.assert_close(layers.rotate(turned, angles, angles), expected, **close)
