"""Bytes per page and where each plane lies in it."""

import pytest

from pagoda.errors import ConfigError
from pagoda.formats.page import ALIGNMENT_NBYTES, PageGeometry, page_geometries
from pagoda.formats.plain import BF16, FP16, FP32
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import LayerGroup, Reach, group_layers

GQA = AttentionLayout(num_kv_heads=8, key_width=128, value_width=128)
# One byte short of a cache line and more: 5 channels of 16 tokens take 160 bytes in 16 bits, 192 aligned.
ODD = AttentionLayout(num_kv_heads=1, key_width=6, value_width=5)


def geometry(*layouts, format=FP16, page_tokens=32):
    return PageGeometry(LayerGroup(Reach.FULL, None, layouts), format, page_tokens)


def test_llama_3_70b_in_fp16_takes_327680_bytes_per_token():
    # Keys and values of 80 layers with 8 heads of 128 channels, two bytes each.
    assert geometry(*[GQA] * 80).nbytes_per_token == 2 * 80 * 8 * 128 * 2 == 327_680


@pytest.mark.parametrize(("format", "itemsize"), [(FP32, 4), (FP16, 2), (BF16, 2)])
@pytest.mark.parametrize("page_tokens", [16, 32, 256])
def test_a_page_holds_every_element_of_its_tokens(format, itemsize, page_tokens):
    page = geometry(GQA, GQA, format=format, page_tokens=page_tokens)
    assert page.page_nbytes == 2 * GQA.elements_per_token * page_tokens * itemsize


@pytest.mark.parametrize("layouts", [(GQA,), (ODD,), (ODD, GQA, ODD)])
@pytest.mark.parametrize("format", [FP32, FP16])
def test_planes_lie_in_order_aligned_and_apart(layouts, format):
    page = geometry(*layouts, format=format, page_tokens=16)
    slots = [slot for planes in page.slots for slot in planes]
    ends = [slot.offset + slot.nbytes for slot in slots]
    assert all(slot.offset % ALIGNMENT_NBYTES == 0 for slot in slots)
    assert all(0 <= slot.offset - end < ALIGNMENT_NBYTES for end, slot in zip([0, *ends], slots, strict=False))
    assert 0 <= page.page_nbytes - ends[-1] < ALIGNMENT_NBYTES


def test_slots_follow_layers_and_planes():
    page = geometry(GQA, ODD)
    assert [[slot.plane for slot in planes] for planes in page.slots] == [list(GQA.planes), list(ODD.planes)]


@pytest.mark.parametrize("page_tokens", [0, -16, 1, 8, 17, 40])
def test_a_page_of_other_than_a_multiple_of_16_tokens_is_refused(page_tokens):
    with pytest.raises(ConfigError, match=f"block_size is {page_tokens}; use a positive multiple of 16"):
        geometry(GQA, page_tokens=page_tokens)


@pytest.mark.parametrize("format", [FP16, BF16])
def test_keys_that_do_not_fill_words_are_refused(format):
    layout = AttentionLayout(num_kv_heads=1, key_width=7, value_width=8)
    with pytest.raises(ConfigError, match=f"cannot be kept in {format.name}: its key heads have 7 channels"):
        geometry(layout, format=format)
    assert geometry(layout, format=FP32).page_nbytes


def test_every_group_of_a_model_has_its_own_geometry():
    spec = group_layers([(Reach.FULL, None, GQA), (Reach.SLIDING, 64, ODD)], [None, None])
    assert page_geometries(spec, BF16, 16) == tuple(PageGeometry(group, BF16, 16) for group in spec.groups)
