"""Draws of many rows at once are the draws of each row alone."""

from __future__ import annotations

import random
from array import array
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.engine import race
from pagoda.engine.race import LIKELY
from pagoda.engine.request import Sequence, new_request
from pagoda.engine.sampling import draw, sample, truncate
from pagoda.engine.together import draw_together, first_to_arrive, numbers, weigh
from pagoda.sampling_params import SamplingParams

NO_EOS: frozenset[int] = frozenset()
KINDS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1e-3},
    {"temperature": 1.0, "min_p": 0.05, "top_k": 50, "top_p": 0.95},
    {"temperature": 1.0, "top_p": 1e-9},
]
keys = st.integers(0, (1 << 64) - 1)
rows = arrays.arrays(np.float32, st.integers(2, 60), elements=st.floats(-9, 9, width=32))


def sequence(seed: int, **params: float) -> Sequence:
    request = new_request(str(seed), [1], SamplingParams(**params))
    return Sequence(request, 0, array(TOKEN_TYPE, [1]), random.Random(seed))


@pytest.mark.parametrize("vocabulary", [3, 300, 20_000])
def test_tokens_are_those_that_each_row_draws_alone(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(len(KINDS) * 20, vocabulary, generator=generator) * 3
    logits[:, 0] = -torch.inf
    params = [KINDS[index % len(KINDS)] for index in range(len(logits))]
    before = logits.clone()
    drawing = [sequence(index, **each) for index, each in enumerate(params)]
    together = draw_together(logits, [(each, row) for row, each in enumerate(drawing)]).tolist()
    alone = [sample(row, sequence(index, **params[index]), NO_EOS) for index, row in enumerate(logits)]
    differing = sum(one != other for one, other in zip(together, alone, strict=True))
    # Weights are rounded otherwise, which decides a race once in thousands.
    assert differing <= len(logits) // 100
    assert torch.equal(logits, before)


def test_rows_are_picked_by_number_and_shared():
    logits = torch.eye(4) * 9
    first, second, third = (sequence(index, temperature=0.0) for index in range(3))
    assert draw_together(logits, [(first, 2), (second, 2), (third, 0)]).tolist() == [2, 2, 0]


def test_draws_ahead_are_those_that_come_later():
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    one, other = ([sequence(index, temperature=index % 2) for index in range(6)] for _ in range(2))
    ahead = [draw_together(logits, [*zip(one, range(6), strict=True)], num_ahead).tolist() for num_ahead in (1, 0, 2)]
    later = [[sample(logits[row], each, NO_EOS) for row, each in enumerate(other)] for _ in range(3)]
    assert ahead == [later[1], later[0], later[2]]
    assert later[0] != later[1]
    tokens = draw_together(logits, [*zip(one, range(6), strict=True)]).tolist()
    known = dict(zip(one, tokens, strict=True))
    drawn, _ = draw(logits, [*zip(one, range(6), strict=True)], NO_EOS, known)
    assert [token for _, _, token in drawn] == later[0]
    assert [sample(logits[row], each, NO_EOS) for row, each in enumerate(one)] == later[1]


def test_numbers_are_those_of_the_race():
    ids = np.array([0, 1, 5, 151_935, -1, -2])
    for key in (0, 1, 1 << 63, (1 << 64) - 1, 0x123456789ABCDEF0):
        signed = torch.tensor([[key - (1 << 64) if key >= 1 << 63 else key]])
        assert numbers(signed, torch.from_numpy(ids))[0].tolist() == race.numbers(key, ids).tolist()


@given(
    arrays.arrays(np.float32, st.integers(1, 700), elements=st.floats(0, 1, width=32) | st.sampled_from([0.0, 1e-7])),
    keys,
)
def test_the_first_to_arrive_is_the_same_and_weighs_something(weights, key):
    if not weights.any():
        return
    found = int(first_to_arrive(torch.from_numpy(weights.copy())[None], [key])[0])
    assert weights[found] > 0
    expected = race.first_to_arrive(weights.copy(), None, key)
    is_of_rest = weights[expected] <= LIKELY * weights.max()
    # Within the rest sums are rounded in another order, so that a neighbour may be picked.
    assert found == expected or (is_of_rest and weights[found] <= LIKELY * weights.max())


def test_the_rest_is_drawn_as_often_as_it_weighs():
    weights = torch.cat((torch.tensor([1.0, 0.5]), torch.full((3000,), LIKELY / 2)))
    generator = random.Random(0)
    draws = first_to_arrive(weights.expand(4000, -1), [generator.getrandbits(64) for _ in range(4000)])
    counts = Counter(draws.clamp(max=2).tolist())
    shares = torch.tensor([1.0, 0.5, 0.15]) / 1.65
    for index, share in enumerate(shares.tolist()):
        assert abs(counts[index] - 4000 * share) <= 5 * np.sqrt(4000 * share * (1 - share))


@given(rows, st.sampled_from(KINDS[1:]))
def test_what_is_cut_off_and_what_is_left_is_as_row_by_row(row, params):
    params = SamplingParams(**params)
    logits = torch.from_numpy(row.copy())
    weights = weigh(logits[None], [params])[0]
    scaled = (logits - logits.max()) / max(params.temperature, torch.finfo(torch.float32).tiny)
    ids, probabilities = truncate(scaled, params)
    expected = torch.zeros(len(row)).index_add_(0, ids, probabilities)
    found = weights / weights.sum()
    likely = (expected > 1e-6) & (found > 1e-6)
    torch.testing.assert_close(found[likely], (expected / expected.sum())[likely], rtol=1e-4, atol=1e-6)
    # Equal logits may be cut off in another order, and sums that reach top_p by rounding alone.
    assert abs(int((expected > 1e-6).sum()) - int((found > 1e-6).sum())) <= 1
