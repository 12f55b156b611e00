"""What GPUs demand of shapes and the interpreter forgives; needs no Triton."""

import itertools

import pytest

from pagoda.formats.page import PageGeometry
from pagoda.kernels.triton import tiles
from pagoda.kernels.triton.shapes import MIN_DOT, Tile, plane_shape, power_of_two
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


@pytest.mark.parametrize(("format", "tokens"), [("fp32", 32), ("bf16", 32), ("int8", 64), ("int4", 64), ("k8v4", 64)])
def test_tiles_have_as_many_words_of_values_as_products_take(format, tokens):
    planes = planes_of(AttentionLayout(2, 128, 128), lookup("format", format), 16)
    assert tiles.fitting(Tile(16, 32, 4, 2), *planes).tokens == tokens
    (latents,) = planes_of(LatentLayout(512, 64), lookup("format", "int8"), 16)
    assert tiles.fitting(Tile(16, 32, 4, 2), latents, latents).tokens == 32


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
