"""What the native kernels refuse, and the memory and rates they offer beside attention."""

import sys
from dataclasses import replace

import pytest
import torch

from pagoda.errors import ConfigError, KernelUnavailableError
from pagoda.formats.plain import FP32
from pagoda.kernels import native
from pagoda.kernels.base import AttentionRule, LayerPages
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import allocate, instruction_sets, read_bandwidth

RULE = AttentionRule(0.125)


@pytest.fixture
def case(shape, make_case):
    return make_case(shape(format=FP32, sequences=((20, 5), (0, 7))))


def test_the_best_instruction_set_is_chosen():
    assert NativeKernels().isa == instruction_sets()[0]
    assert instruction_sets()[-1] == "baseline"
    assert NativeKernels("baseline").name.startswith("native (baseline, ")


def test_an_instruction_set_that_is_not_there_is_refused():
    with pytest.raises(KernelUnavailableError, match=r"choose one of: .*baseline"):
        NativeKernels("avx1024")


def test_a_build_without_a_compiler_says_so_when_kernels_are_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "pagoda.kernels._native", None)
    monkeypatch.delattr("pagoda.kernels._native", raising=False)
    with pytest.raises(KernelUnavailableError, match=r"C\+\+ compiler"):
        native.NativeKernels()


@pytest.mark.parametrize(
    "query",
    [
        torch.zeros(12, 8, 32),
        torch.zeros(12, 7, 64),
        torch.zeros(12, 8, 64, dtype=torch.float64),
        torch.zeros(12, 8, 128)[:, :, ::2],
    ],
    ids=["width", "heads", "dtype", "stride"],
)
def test_queries_of_another_shape_are_refused(case, query):
    with pytest.raises(ConfigError):
        NativeKernels().attend(query, case.layer, case.view, RULE)


def test_pages_must_be_bytes_of_the_right_size(case):
    kernels = NativeKernels()
    for pages in (case.layer.pages.view(torch.float32), case.layer.pages[:, :-64], case.layer.pages.t()):
        with pytest.raises(ConfigError, match="Pages are"):
            kernels.attend(case.query, LayerPages(pages, case.layer.geometry, 1), case.view, RULE)


def test_sinks_are_one_per_head(case):
    with pytest.raises(ConfigError, match="sinks"):
        NativeKernels().attend(case.query, case.layer, case.view, RULE, torch.zeros(3))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("page_indices", [0, 99]),
        ("page_indices", [0, -1]),
        ("page_indices", [0]),
        ("page_starts", [0, 0, 1]),
        ("query_starts", [0, 5, 11]),
        ("query_starts", [0, 30, 12]),
        ("context_lengths", [25, 6]),
        ("context_lengths", [25, 4000]),
    ],
)
def test_page_tables_that_contradict_themselves_are_refused(case, field, values):
    view = replace(case.view, **{field: torch.tensor(values, dtype=torch.int32)})
    kernels = NativeKernels()
    with pytest.raises(ValueError, match=r"page|sequence|query_starts"):
        kernels.attend(case.query, case.layer, view, RULE)
    with pytest.raises(ValueError, match=r"page|sequence|query_starts"):
        kernels.store(case.key[:12], case.value[:12], case.layer, view)


def test_page_tables_are_int32(case):
    view = replace(case.view, page_indices=case.view.page_indices.long())
    with pytest.raises(ConfigError, match="int32"):
        NativeKernels().attend(case.query, case.layer, view, RULE)


def test_a_step_without_new_tokens_is_empty(case):
    view = replace(case.view, query_starts=torch.zeros(3, dtype=torch.int32))
    assert NativeKernels().attend(case.query[:0], case.layer, view, RULE).shape == (0, 8, 64)
    NativeKernels().store(case.key[:0], case.value[:0], case.layer, view)


def test_allocated_memory_is_aligned_zero_and_outlives_its_maker():
    memory = allocate(5 << 20)
    assert memory.data_ptr() % (2 << 20) == 0
    part = memory[-64:]
    del memory
    assert part.tolist() == [0] * 64
    part[-1] = 7
    assert part[-1] == 7


def test_reading_has_a_rate():
    assert read_bandwidth(1 << 20, num_threads=1, repeats=1) > 0
