"""What GPUs demand of shapes and the interpreter forgives; needs no Triton."""

import itertools
from dataclasses import replace

import pytest

from pagoda.formats.page import PageGeometry
from pagoda.kernels.triton import tiles
from pagoda.kernels.triton.planes import MIN_DOT, plane_shape, power_of_two
from pagoda.kernels.triton.shapes import Load, Tile
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.latent import LatentLayout
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.registry import lookup, names

ATTENTION = [
    AttentionLayout(2, key, value) for key, value in itertools.product((8, 24, 64, 80, 96, 128, 192, 256), repeat=2)
]
LATENTS = [LatentLayout(512, 64), LatentLayout(256, 32), LatentLayout(64, 16), LatentLayout(40, 8)]


def planes_of(layout, format, page_tokens):
    geometry = PageGeometry(LayerGroup(Reach.FULL, None, (layout,) * 3), format, page_tokens)
    return [plane_shape(slot, format, page_tokens) for slot in geometry.slots[1]]


@pytest.mark.parametrize("format", names("format"))
@pytest.mark.parametrize("page_tokens", [16, 48, 128])
def test_every_layout_is_read_in_tiles_that_tensor_cores_take(format, page_tokens):
    """And from aligned words: `plane_shape` asserts it."""
    for layout in [*ATTENTION, *(LATENTS if format != "k8v4" else [])]:
        key, *value = planes_of(layout, lookup("format", format), page_tokens)
        covered = [part.first + row for part in key.parts for row in range(part.rows)]
        assert set(covered) >= set(range(key.word_rows))
        assert len(covered) == len(set(covered))
        assert all(part.rows == power_of_two(part.rows) >= MIN_DOT for part in key.parts)
        assert all(each.block_lanes == power_of_two(each.block_lanes) >= MIN_DOT for each in value)


@pytest.mark.parametrize(("format", "channels"), [("bf16", 576), ("int8", 576), ("int4", 640)])
def test_little_of_what_is_read_of_latents_does_not_exist(format, channels):
    (key,) = planes_of(LatentLayout(512, 64), lookup("format", format), 64)
    assert sum(part.rows for part in key.parts) * key.tiles == channels


def load_of(layout, format, has_constants=False, itemsize=2):
    planes = planes_of(layout, lookup("format", format), 16)
    return Load(planes[0], planes[-1], itemsize, has_constants, has_biases=False)


@pytest.mark.parametrize(("format", "tokens"), [("fp32", 32), ("bf16", 32), ("int8", 64), ("int4", 64), ("k8v4", 64)])
def test_tiles_have_as_many_words_of_values_as_products_take(format, tokens):
    tile = Tile(16, 32, 4, 2)
    assert tiles.fitting(tile, load_of(AttentionLayout(2, 128, 128), format), 1 << 20).tokens == tokens
    assert tiles.fitting(tile, load_of(LatentLayout(512, 64), "int8"), 1 << 20).tokens == 32


@pytest.mark.parametrize("shared_kib", [99, 163, 227])
@pytest.mark.parametrize("format", names("format"))
def test_tiles_fit_in_the_shared_memory_of_every_card(format, shared_kib):
    table = tiles.for_card(shared_kib << 10)
    every = [table.few, table.few_codes, table.few_latents, table.many, table.many_codes, table.many_latents]
    for layout in [*ATTENTION, *(LATENTS if format != "k8v4" else [])]:
        for tile, itemsize in [*((each, 2) for each in every), (table.exact, 4)]:
            load = load_of(layout, format, has_constants=format not in ("fp32", "fp16", "bf16"), itemsize=itemsize)
            fitted = tiles.fitting(tile, load, table.shared_nbytes)
            assert fitted.tokens >= load.least_tokens
            is_least = fitted == replace(tile, rows=MIN_DOT, tokens=load.least_tokens, num_stages=1)
            # Of the widest latents in fp32 it is the least there is, and less than is reckoned: scripts/gpu_compile.py.
            assert load.shared_nbytes(fitted) <= table.shared_nbytes or (is_least and layout == LATENTS[0])


def test_the_tiles_that_were_measured_are_those_of_the_card_they_were_measured_on():
    table = tiles.for_card(227 << 10)
    plain, coded = load_of(AttentionLayout(8, 128, 128), "bf16"), load_of(AttentionLayout(8, 128, 128), "int8")
    for tile, load in ((table.few, plain), (table.many, plain), (table.few_codes, coded), (table.many_codes, coded)):
        assert tiles.fitting(tile, load, table.shared_nbytes) == tile


@pytest.mark.parametrize("page_tokens", [16, 48, 80, 512])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 8, 96])
def test_splits_are_whole_pages_and_whole_tiles(page_tokens, num_kv_heads):
    table = tiles.HOPPER
    for tile, is_few in itertools.product((table.few, table.many, table.exact), (True, False)):
        tokens = table.split_tokens(num_kv_heads, is_few)
        split = tiles.split_pages(tokens, page_tokens, tile) * page_tokens
        assert split % tile.tokens == 0
        assert split <= max(tokens, tile.tokens * page_tokens)


@pytest.mark.parametrize("sizes", [(24, 64, 4, 2), (8, 64, 4, 2), (16, 48, 4, 2), (16, 64, 3, 2)])
def test_tiles_that_gpus_refuse_are_refused(sizes):
    with pytest.raises(AssertionError):
        Tile(*sizes)
