"""What every registered format must do, over every layout: its size, its error bound, tokens apart from each other."""

import numpy as np
import pytest
import torch

from pagoda.formats.base import Format
from pagoda.registry import REGISTRY, lookup, names

LAYOUTS = {name: each for kind in names("layout") for name, each in lookup("layout", kind).examples().items()}
PLANES = {f"{name}, {plane.name}": plane for name, layout in LAYOUTS.items() for plane in layout.planes}
PAGE_TOKENS = 32

every_format = pytest.mark.parametrize("name", REGISTRY["format"])
every_plane = pytest.mark.parametrize("plane", PLANES.values(), ids=PLANES)


def normal_values(plane):
    """Both signs, over the magnitudes that even 16-bit floats hold without losing bits: 2**-14 to 2**15."""
    draw = np.random.default_rng(0)
    shape = (plane.num_heads, PAGE_TOKENS, plane.width)
    values = draw.choice([-1, 1], shape) * np.exp2(draw.uniform(-14, 15, shape))
    return torch.from_numpy(values.astype(np.float32))


@every_format
def test_the_registered_name_is_the_formats_own(name):
    format = lookup("format", name)
    assert isinstance(format, Format)
    assert format.name == name


@every_format
@every_plane
def test_encoding_takes_the_bytes_it_says(name, plane):
    format = lookup("format", name)
    data = format.encode(normal_values(plane), plane)
    assert (data.dtype, data.shape) == (torch.uint8, (format.plane_nbytes(plane, PAGE_TOKENS),))


@every_format
@every_plane
def test_the_error_of_a_round_trip_is_within_its_bound(name, plane):
    format, values = lookup("format", name), normal_values(plane)
    decoded = format.decode(format.encode(values, plane), plane)
    assert (decoded.dtype, decoded.shape) == (torch.float32, values.shape)
    assert ((decoded - values).abs() <= format.error_bound(values, plane)).all()


@every_format
@every_plane
def test_a_token_is_written_without_touching_the_others(name, plane):
    """Written in any order, one at a time, over other numbers, the bytes are the same: hits copy parts of pages."""
    format, values = lookup("format", name), normal_values(plane)
    data = format.encode(values.flip(1), plane)[None]
    for token in torch.randperm(PAGE_TOKENS, generator=torch.Generator().manual_seed(0)):
        format.write(data, plane, torch.zeros(1, dtype=torch.long), token[None], values[:, token][None])
    assert torch.equal(data[0], format.encode(values, plane))


@every_format
@every_plane
def test_a_token_moves_as_if_it_had_been_written_there(name, plane):
    """To other places of other pages, which compression does: its bits and those of the others stay the same."""
    format, values = lookup("format", name), normal_values(plane)
    tokens = torch.cat((values, values.flip(1)), dim=1)
    source, target = (
        torch.stack([format.encode(page, plane) for page in each.split(PAGE_TOKENS, dim=1)])
        for each in (tokens, tokens.roll(7, dims=1))
    )
    old, new = torch.randperm(2 * PAGE_TOKENS, generator=torch.Generator().manual_seed(0)).split(PAGE_TOKENS)
    expected = target.clone()
    format.write(expected, plane, new // PAGE_TOKENS, new % PAGE_TOKENS, tokens[:, old].transpose(0, 1))
    for read, write in zip(format.token_views(source, plane), format.token_views(target, plane), strict=True):
        inner, (from_, to) = read.shape[-3], (old % PAGE_TOKENS, new % PAGE_TOKENS)
        token = read[old // PAGE_TOKENS, :, from_ // inner, from_ % inner]
        write[new // PAGE_TOKENS, :, to // inner, to % inner] = token
    assert torch.equal(target, expected)
    before, after = (format.decode(each, plane).transpose(0, 1).flatten(1, 2) for each in (source, target))
    assert torch.equal(after[:, new], before[:, old])


@every_format
@every_plane
def test_what_is_not_finite_does_not_come_back_finite(name, plane):
    format, values = lookup("format", name), normal_values(plane)
    values[0, 3, 0], values[0, 4, -1] = float("nan"), float("inf")
    decoded = format.decode(format.encode(values, plane), plane)
    assert not decoded[0, 3, 0].isfinite()
    assert not decoded[0, 4, -1].isfinite()
    assert decoded[0, 5:].isfinite().all()
