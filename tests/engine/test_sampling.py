"""Sampling against plain numpy definitions, its draws against their distribution, and its independence of the batch."""

import math
import random
from array import array
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pagoda.engine.request import Request, RequestMetrics, Sequence
from pagoda.engine.sampling import draw, edit_logits, sample, token_logprobs, truncate
from pagoda.errors import InvalidSamplingError, RequestError
from pagoda.sampling_params import SamplingParams

pytestmark = pytest.mark.usefixtures("two_threads")

NO_EOS: frozenset[int] = frozenset()
EOS = 2


def make_sequence(params, prompt=(0,), output=(), seed=0):
    request = Request("request", list(prompt), params, RequestMetrics(arrival=0.0))
    return Sequence(request, 0, array("i", [*prompt, *output]), random.Random(seed))


def edited(logits, prompt=(0,), output=(), eos=NO_EOS, **params):
    sequence = make_sequence(SamplingParams(**params), prompt, output)
    return edit_logits(torch.tensor(logits), sequence, eos).tolist()


def kept(logits, **params):
    """Probability of each token that may be drawn."""
    ids, probabilities = truncate(torch.tensor(logits, dtype=torch.float32), SamplingParams(**params))
    normalised = (probabilities / probabilities.sum()).tolist()
    return dict(zip(ids.tolist(), normalised, strict=True))


def softmax(logits):
    with np.errstate(under="ignore"):
        weights = np.exp(np.asarray(logits, dtype=np.float64) - np.max(logits))
    return weights / weights.sum()


def plain_truncation(logits, top_k, top_p, min_p):
    """Of the tokens at least `min_p` as likely as the best, the best `top_k`; of these, the nucleus."""
    probabilities = softmax(logits)
    order = [token for token in np.argsort(-probabilities) if probabilities[token] >= min_p * probabilities.max()]
    order = order[: top_k or None]
    renormalised = probabilities[order] / probabilities[order].sum()
    before = np.cumsum(renormalised) - renormalised
    order = [token for token, mass in zip(order, before, strict=True) if mass < top_p or token == order[0]]
    return {int(token): probabilities[token] / probabilities[order].sum() for token in order}


# Logits apart enough that rounding cannot change who is in: no two equal, no mass exactly at a threshold.
distinct_logits = st.lists(st.integers(-60, 60), min_size=1, max_size=40, unique=True).map(
    lambda values: [value / 7 for value in values]
)


class TestTruncation:
    @settings(max_examples=40)
    @given(
        logits=distinct_logits,
        top_k=st.integers(0, 50),
        top_p=st.sampled_from([0.0137, 0.31, 0.777, 0.9513, 1.0]),
        min_p=st.sampled_from([0.0, 0.00713, 0.13, 0.511]),
    )
    def test_it_is_the_plain_definition(self, logits, top_k, top_p, min_p):
        expected = plain_truncation(logits, top_k, top_p, min_p)
        found = kept(logits, top_k=top_k, top_p=top_p, min_p=min_p)
        assert found == pytest.approx({token: expected.get(token, 0.0) for token in found}, abs=1e-5)
        assert set(found) == set(expected)

    def test_everything_is_kept_by_default(self):
        assert kept([1.0, 2.0, 3.0]) == pytest.approx(dict(enumerate(softmax([1, 2, 3]))))

    @pytest.mark.parametrize("top_k", [0, -1, 3, 4, 10**6])
    def test_top_k_of_the_vocabulary_or_more_keeps_everything(self, top_k):
        assert set(kept([1.0, 2.0, 3.0], top_k=top_k)) == {0, 1, 2}

    @pytest.mark.parametrize("top_p", [1e-6, 1e-30, 5e-324])
    def test_a_tiny_top_p_keeps_the_best(self, top_p):
        assert kept([1.0, 3.0, 2.0], top_p=top_p) == {1: 1.0}

    def test_the_nucleus_includes_the_token_that_crosses_the_threshold(self):
        logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
        assert set(kept(logits, top_p=0.6)) == {0, 1}

    def test_min_p_of_one_keeps_all_equally_best(self):
        assert set(kept([2.0, 1.0, 2.0], min_p=1.0)) == {0, 2}

    def test_min_p_compares_probabilities(self):
        logits = [math.log(p) for p in (0.6, 0.3, 0.1)]
        assert set(kept(logits, min_p=0.4)) == {0, 1}

    @pytest.mark.parametrize(("params", "size"), [({"top_k": 3}, 3), ({"top_p": 0.35}, 4), ({"min_p": 1.0}, 10)])
    def test_of_equal_logits_as_many_are_kept_as_asked_for(self, params, size):
        assert list(kept([1.5] * 10, **params).values()) == pytest.approx([1 / size] * size)

    def test_banned_tokens_have_no_probability(self):
        found = kept([-math.inf, 1.0, -math.inf, 1.0], top_k=3)
        assert {token: p for token, p in found.items() if p} == {1: 0.5, 3: 0.5}

    @pytest.mark.parametrize("top_p", [0.25, 0.75])
    def test_a_large_nucleus_is_found(self, top_p):
        size = 4096
        assert len(kept([0.0] * size, top_p=top_p)) == pytest.approx(top_p * size, abs=1)


class TestEdits:
    LOGITS = (1.0, -1.0, 2.0, -2.0, 0.5)

    def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_all_seen_tokens(self):
        result = edited(self.LOGITS, prompt=[0, 1], output=[3, 3], repetition_penalty=2.0)
        assert result == [0.5, -2.0, 2.0, -4.0, 0.5]

    def test_presence_penalty_subtracts_once_and_spares_the_prompt(self):
        assert edited(self.LOGITS, prompt=[0], output=[2, 2], presence_penalty=0.5) == [1.0, -1.0, 1.5, -2.0, 0.5]

    def test_frequency_penalty_subtracts_per_occurrence_and_spares_the_prompt(self):
        assert edited(self.LOGITS, prompt=[0], output=[2, 2], frequency_penalty=0.5) == [1.0, -1.0, 1.0, -2.0, 0.5]

    def test_penalties_without_output_change_nothing(self):
        assert edited(self.LOGITS, presence_penalty=1.0, frequency_penalty=1.0) == list(self.LOGITS)

    def test_negative_penalties_encourage(self):
        assert edited(self.LOGITS, output=[4], presence_penalty=-1.0)[4] == 1.5

    def test_bias_is_added(self):
        assert edited(self.LOGITS, logit_bias={0: -100, 3: 2.5}) == [-99.0, -1.0, 2.0, 0.5, 0.5]

    def test_tokens_that_end_are_banned_until_min_tokens(self):
        params = {"min_tokens": 2, "stop_token_ids": [4]}
        banned = [1.0, -1.0, -math.inf, -2.0, -math.inf]
        assert edited(self.LOGITS, output=[0], eos=frozenset({EOS}), **params) == banned
        assert edited(self.LOGITS, output=[0, 0], eos=frozenset({EOS}), **params) == list(self.LOGITS)

    def test_an_ignored_eos_is_not_banned(self):
        assert edited(self.LOGITS, eos=frozenset({EOS}), min_tokens=2, ignore_eos=True) == list(self.LOGITS)

    def test_the_logits_given_are_left_alone(self):
        logits = torch.tensor(self.LOGITS)
        sample(logits, make_sequence(SamplingParams(temperature=0, logit_bias={1: 50.0})), NO_EOS)
        assert logits.tolist() == list(self.LOGITS)

    def test_edits_change_the_greedy_choice(self):
        sequence = make_sequence(SamplingParams(temperature=0, logit_bias={1: 50.0}))
        assert sample(torch.tensor(self.LOGITS), sequence, NO_EOS) == 1


def draws(logits, count, seed=0, **params):
    """`count` draws of one sequence from the same logits."""
    sequence = make_sequence(SamplingParams(**params), seed=seed)
    row = torch.tensor(logits, dtype=torch.float32)
    return [sample(row, sequence, NO_EOS) for _ in range(count)]


class TestDraws:
    COUNT = 1500
    LOGITS = (0.0, 2.5, 2.0, -1.0, 0.5, 1.0)

    @pytest.mark.parametrize(
        ("params", "expected"),
        [
            ({}, softmax(LOGITS)),
            ({"temperature": 0.5}, softmax(np.divide(LOGITS, 0.5))),
            ({"temperature": 3.0}, softmax(np.divide(LOGITS, 3.0))),
            ({"top_k": 2}, softmax([-np.inf, 2.5, 2.0, -np.inf, -np.inf, -np.inf])),
        ],
    )
    def test_frequencies_follow_the_probabilities(self, params, expected):
        found = Counter(draws(self.LOGITS, self.COUNT, seed=1, **params))
        possible = expected > 0
        observed = np.array([found[token] for token in range(len(expected))])
        assert not observed[~possible].any()
        wanted = self.COUNT * expected[possible]
        chi_square = ((observed[possible] - wanted) ** 2 / wanted).sum()
        # 99.9 % quantile of chi-square with five degrees of freedom; the seed is fixed.
        assert chi_square < 20.5

    def test_the_same_seed_draws_the_same(self):
        assert draws(self.LOGITS, 50, seed=7) == draws(self.LOGITS, 50, seed=7)

    def test_another_seed_draws_otherwise(self):
        assert draws(self.LOGITS, 50, seed=7) != draws(self.LOGITS, 50, seed=8)

    @pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300])
    def test_a_tiny_temperature_is_greedy(self, temperature):
        assert set(draws(self.LOGITS, 20, temperature=temperature)) == {1}

    @pytest.mark.parametrize("key", [0, 1, 1 << 63, (1 << 64) - 1])
    def test_a_banned_token_is_never_drawn(self, key):
        sequence = make_sequence(SamplingParams())
        sequence.random.getrandbits = lambda bits: key
        logits = torch.tensor([-math.inf, 1.0, 0.5, -math.inf])
        assert sample(logits, sequence, NO_EOS) in {1, 2}


class TestBatch:
    def test_others_in_the_batch_do_not_change_the_draws(self):
        logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
        others = [SamplingParams(temperature=0), SamplingParams(top_k=5)]

        def first_of(batch):
            sequences = [make_sequence(params, seed=number) for number, params in enumerate(batch)]
            steps = [[sample(*pair, NO_EOS) for pair in zip(logits, sequences, strict=False)] for _ in range(30)]
            return [step[0] for step in steps]

        assert first_of([SamplingParams()]) == first_of([SamplingParams(), *others])

    def test_greedy_takes_the_best_token(self):
        sequence = make_sequence(SamplingParams(temperature=0))
        assert sample(torch.tensor([0.0, 3.0, 1.0]), sequence, NO_EOS) == 1

    def test_a_greedy_row_uses_no_random_number(self):
        sequence = make_sequence(SamplingParams(temperature=0))
        before = sequence.random.getstate()
        sample(torch.zeros(3), sequence, NO_EOS)
        assert sequence.random.getstate() == before


class TestLogprobs:
    @settings(max_examples=40)
    @given(
        logits=arrays.arrays(np.float32, st.integers(1, 30), elements=st.floats(-20, 20, width=32)),
        data=st.data(),
    )
    def test_they_are_the_plain_definition(self, logits, data):
        token = data.draw(st.integers(0, len(logits) - 1))
        num_top = data.draw(st.integers(0, len(logits)))
        expected = np.log(softmax(logits))
        found = token_logprobs(torch.from_numpy(logits), token, num_top)
        assert found.logprob == pytest.approx(expected[token], abs=1e-4)
        assert sorted(found.top.values(), reverse=True) == pytest.approx(np.sort(expected)[::-1][:num_top], abs=1e-4)
        assert all(value == pytest.approx(expected[id], abs=1e-4) for id, value in found.top.items())

    def test_rank_counts_the_more_likely_tokens(self):
        logits = torch.tensor([0.0, 3.0, 1.0, 3.0])
        assert [token_logprobs(logits, token, 0).rank for token in range(4)] == [4, 1, 3, 1]


def test_a_sequence_without_a_token_left_fails_alone():
    logits = torch.tensor([1.0, -math.inf])
    params = SamplingParams(min_tokens=1, stop_token_ids=[0])
    broken = make_sequence(SamplingParams())
    broken.random = None
    rows = [(each, 0) for each in (make_sequence(params), broken, make_sequence(SamplingParams()))]
    drawn, failed = draw(logits[None], rows, NO_EOS)
    assert [token for _, _, token in drawn] == [0]
    assert [type(error) for _, error in failed] == [InvalidSamplingError, RequestError]
