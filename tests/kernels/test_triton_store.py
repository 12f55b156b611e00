"""What the Triton kernels, interpreted, store: the bytes of the reference, whatever the numbers."""

import mmap
from dataclasses import replace

import pytest
import torch

from kernels.interpreted import SMALL, TritonAttention
from kernels.rounding import FORMATS
from pagoda.formats.plain import BF16, FP16, FP32
from pagoda.kernels.base import AttentionRule
from pagoda.kernels.reference import ReferenceKernels

# NumPy, which interprets, warns of what is tested here: overflow, and what is not a number.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = {"kv_heads": 2, "group": 1, "key_width": 32, "value_width": 32, "page_tokens": 16}

every_format = pytest.mark.parametrize("format", FORMATS, ids=[format.name for format in FORMATS])


@every_format
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_are_rounded_as_torch_rounds(format, dtype, shape, make_case):
    """Ties, subnormals, overflow and infinity."""
    case = make_case(shape(format=format, dtype=dtype, sequences=((0, 30),), **SIZES))
    exponents = torch.arange(-45, 39).repeat(100)[: case.key.numel()].view(case.key.shape)
    key = (case.key.float() * 10.0**exponents).to(dtype)
    key.view(-1)[:4] = torch.tensor([65519.0, 65520.0, 1.00390625, float("inf")]).to(dtype)
    expected, actual = case.blank(), case.blank()
    ReferenceKernels().store(key, case.value, expected, case.whole)
    TritonAttention(SMALL).store(key, case.value, actual, case.whole)
    assert torch.equal(actual.pages, expected.pages)


@every_format
def test_a_sequence_that_stores_what_is_not_finite_is_marked(format, shape, make_case):
    sequences = ((0, 10), (0, 3), (0, 17), (0, 0), (0, 9))
    case = make_case(shape(format=format, dtype=format.model_dtype(), sequences=sequences, **SIZES))
    for plane, broken in ((case.key, (float("nan"), -float("inf"))), (case.value, (-float("inf"), float("nan")))):
        before = plane.clone()
        plane[11, 1, 13], plane[-1, 0, 0] = broken
        finite = torch.ones(5, dtype=torch.uint8)
        TritonAttention(SMALL).store(case.key, case.value, case.blank(), case.whole, finite)
        assert finite.tolist() == [1, 0, 1, 1, 0]
        plane.copy_(before)


def test_what_overflows_a_narrow_format_is_marked(shape, make_case):
    case = make_case(shape(format=FP16, sequences=((0, 4), (0, 4)), **SIZES))
    case.key[5, 0, 0] = 1e6
    finite = torch.ones(2, dtype=torch.uint8)
    TritonAttention(SMALL).store(case.key, case.value, case.blank(), case.whole, finite)
    assert finite.tolist() == [1, 0]


def test_rows_may_be_slices_of_a_fused_projection(shape, make_case):
    case = make_case(shape(format=FP32, sequences=((0, 20),), **SIZES))
    kernels, pages = TritonAttention(SMALL), case.blank()
    query, key, value = torch.cat([case.query, case.key, case.value], dim=1).split([2, 2, 2], dim=1)
    kernels.store(key, value, pages, case.whole)
    assert torch.equal(pages.pages, case.layer.pages)
    expected = kernels.attend(case.query, case.layer, case.view, AttentionRule(0.125))
    assert torch.equal(kernels.attend(query, pages, case.view, AttentionRule(0.125)), expected)
    turned = case.query.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(kernels.attend(turned, case.layer, case.view, AttentionRule(0.125)), expected)


def test_new_tokens_leave_others_as_they_are(shape, make_case):
    case = make_case(shape(format=BF16, dtype=torch.bfloat16, sequences=((20, 3), (0, 18), (31, 1)), **SIZES))
    layer = case.blank()
    kernels = TritonAttention(SMALL)
    ends = case.whole.query_starts[1:].tolist()
    rows = torch.cat([torch.arange(end - new, end) for end, (_, new) in zip(ends, case.shape.sequences, strict=True)])
    kernels.store(case.key[rows], case.value[rows], layer, case.view)
    rest = torch.ones(len(case.key), dtype=torch.bool)
    rest[rows] = False
    lengths = torch.tensor([past for past, _ in case.shape.sequences]).int()
    starts = torch.cat((torch.zeros(1), lengths.cumsum(0))).int()
    kernels.store(
        case.key[rest], case.value[rest], layer, replace(case.view, query_starts=starts, context_lengths=lengths)
    )
    assert torch.equal(layer.pages, case.layer.pages)


def test_pools_may_be_larger_than_32_bits_can_say(shape, make_case):
    """Pages at the end of 5 GB, which are mapped but never touched."""
    case = make_case(shape(format=BF16, dtype=torch.bfloat16, sequences=((20, 3),), **SIZES))
    page_nbytes = case.layer.geometry.page_nbytes
    num_pages = 5 * 2**30 // page_nbytes
    pool = torch.frombuffer(mmap.mmap(-1, num_pages * page_nbytes), dtype=torch.uint8).view(num_pages, page_nbytes)
    far = torch.tensor([num_pages - 1, num_pages - 3], dtype=torch.int32)
    layer = replace(case.layer, pages=pool)
    kernels = TritonAttention(SMALL)
    kernels.store(case.key, case.value, layer, replace(case.whole, page_indices=far))
    actual = kernels.attend(case.query, layer, replace(case.view, page_indices=far), AttentionRule(0.125))
    assert torch.equal(actual, kernels.attend(case.query, case.layer, case.view, AttentionRule(0.125)))
