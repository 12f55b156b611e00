"""Where the plain formats put each number: the word order that kernels rely on."""

import pytest
import torch

from pagoda.formats.plain import BF16, FP16, FP32
from pagoda.layouts.base import Axis, Plane

HEADS, TOKENS, WIDTH = 2, 16, 6
KEY = Plane("key", HEADS, WIDTH, Axis.CHANNEL)
VALUE = Plane("value", HEADS, WIDTH, Axis.TOKEN)


@pytest.fixture
def values():
    """Every number tells its place, and every format holds it exactly."""
    return torch.arange(HEADS * TOKENS * WIDTH, dtype=torch.float32).reshape(HEADS, TOKENS, WIDTH)


@pytest.mark.parametrize("format", [FP16, BF16])
def test_a_word_of_a_key_holds_two_channels_of_one_token(format, values):
    words = format.encode(values, KEY).view(format.dtype()).reshape(HEADS, WIDTH // 2, TOKENS, 2)
    assert words[1, 2, 7].tolist() == values[1, 7, 4:6].tolist()


@pytest.mark.parametrize("format", [FP16, BF16])
def test_a_word_of_a_value_holds_two_tokens_of_one_channel(format, values):
    words = format.encode(values, VALUE).view(format.dtype()).reshape(HEADS, TOKENS // 2, WIDTH, 2)
    assert words[1, 3, 5].tolist() == values[1, 6:8, 5].tolist()


def test_fp32_keys_are_stored_by_channel_and_values_by_token(values):
    keys = FP32.encode(values, KEY).view(torch.float32).reshape(HEADS, WIDTH, TOKENS)
    assert torch.equal(keys, values.transpose(1, 2))
    stored = FP32.encode(values, VALUE).view(torch.float32).reshape(HEADS, TOKENS, WIDTH)
    assert torch.equal(stored, values)


@pytest.mark.parametrize("format", [FP32, FP16, BF16])
@pytest.mark.parametrize("plane", [KEY, VALUE])
def test_writing_one_token_leaves_the_others_alone(format, plane, values):
    data = format.encode(values, plane)
    count = format.word_elements
    view = format.view(data, plane)
    channels = torch.full((HEADS, WIDTH), 99.0)
    a, b = (1, count) if plane is KEY else (count, 1)
    view[:, 5 // a, 5 % a] = channels.reshape(HEADS, WIDTH // b, b).to(format.dtype())
    expected = values.clone()
    expected[:, 5] = 99.0
    assert torch.equal(format.decode(data, plane), expected)
