"""The exponential race: its distribution, what rounding may change, and the draw within the rest."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pagoda.engine.race import LIKELY, PICK_BLOCK, first_to_arrive, numbers, pick

keys = st.integers(0, (1 << 64) - 1)
weights = arrays.arrays(
    np.float32,
    st.integers(1, 3 * PICK_BLOCK + 1),
    elements=st.floats(0, 1, width=32) | st.sampled_from([0.0, 1e-30, 1e-7]),
    fill=st.just(np.float32(0)),
)


def drawn(weights, count, token_ids=None, seed=0):
    generator = random.Random(seed)
    return [first_to_arrive(weights.copy(), token_ids, generator.getrandbits(64)) for _ in range(count)]


class TestRace:
    @given(weights.filter(np.any), keys)
    def test_a_token_of_no_weight_never_arrives(self, weights, key):
        assert weights[first_to_arrive(weights.copy(), None, key)] > 0

    @pytest.mark.parametrize("rest", [0, 10, 3000])
    def test_tokens_are_drawn_as_often_as_they_weigh(self, rest):
        """Those that arrive together, too: within 5 standard deviations, which one of a million runs would miss."""
        weights = np.concatenate([[1, 0.5, 0.1, 0.02], np.full(rest, LIKELY / 2)]).astype(np.float32)
        counts = Counter(min(index, 4) for index in drawn(weights, 20_000))
        for index, share in enumerate([*weights[:4], weights[4:].sum()] / weights.sum()):
            assert abs(counts[index] - 20_000 * share) <= 5 * np.sqrt(20_000 * share * (1 - share))

    def test_rounding_seldom_changes_what_is_drawn(self):
        """Weights as bfloat16 leaves them: a hundred thousand tokens, most of them unlikely, each within 1 %."""
        generator = np.random.default_rng(0)
        weights = np.exp(-generator.gamma(4, 2.5, 100_000)).astype(np.float32)
        others = (weights * generator.uniform(0.99, 1.01, weights.shape)).astype(np.float32)
        same = [one == other for one, other in zip(drawn(weights, 300), drawn(others, 300), strict=True)]
        assert sum(same) >= 285

    def test_a_token_keeps_its_time_wherever_it_stands(self):
        """Truncation leaves other tokens out and sorts the rest."""
        token_ids = np.array([70, 3, 500, 41])
        weights = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
        order = np.array([2, 0, 3, 1])
        moved = drawn(weights[order], 100, token_ids[order])
        assert token_ids[drawn(weights, 100, token_ids)].tolist() == token_ids[order][moved].tolist()

    @given(keys)
    def test_numbers_lie_between_0_and_1(self, key):
        found = numbers(key, np.arange(-2, 100))
        assert ((found > 0) & (found < 1)).all()
        assert len(set(found.tolist())) == len(found)


class TestPick:
    @given(weights.filter(np.any), st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 1 - 2**-53]))
    def test_it_is_the_plain_definition(self, weights, number):
        """Up to what sums are rounded by: of a block in fp32, and of so many blocks in fp64."""
        ends = weights.astype(np.float64).cumsum()
        found = pick(weights, number)
        rounding = ends[-1] * PICK_BLOCK * np.finfo(np.float32).eps
        assert weights[found] > 0
        assert ends[found] - weights[found] - rounding <= number * ends[-1] <= ends[found] + rounding

    def test_weights_of_a_vocabulary_are_picked_where_they_are(self):
        weights = np.ones(50_000, np.float32)
        assert [pick(weights, index / 50_000 + 1e-6) for index in (0, 255, 256, 12_345, 49_999)] == [
            *(0, 255, 256, 12_345, 49_999)
        ]
