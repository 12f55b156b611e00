"""How pages of a budget are shared: against all ways to do it, and tokens of heads against picking them one by one."""

from itertools import product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pagoda.cache.compression.choice import policy_of
from pagoda.cache.compression.shares import Share, tokens_of_heads


@given(
    wanted=st.lists(st.floats(0, 90), min_size=1, max_size=4),
    num_pages=st.integers(1, 5),
    least_tokens=st.integers(0, 40),
    num_slots=st.integers(16, 99),
)
def test_pages_are_the_nearest_to_what_is_wanted_within_bounds(wanted, num_pages, least_tokens, num_slots):
    share, least = Share(num_pages, 16, num_slots), -(-least_tokens // 16)
    assume(least <= num_pages <= share.most_pages)
    given_out = share.whole_pages(wanted, least_tokens)

    def distance(way):
        return sum((pages * 16 - tokens) ** 2 for pages, tokens in zip(way, wanted, strict=True))

    ways = product(range(least, share.most_pages + 1), repeat=len(wanted))
    best = min(distance(way) for way in ways if sum(way) == num_pages * len(wanted))
    assert sum(given_out) == num_pages * len(wanted)
    assert least <= min(given_out) <= max(given_out) <= share.most_pages
    assert distance(given_out) == pytest.approx(best)


@given(seed=st.integers(0, 99), count=st.integers(1, 30), floor=st.floats(0, 1), room=st.integers(0, 10))
def test_tokens_of_heads_are_the_best_of_all_together(seed, count, floor, room):
    scores = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) * torch.tensor([[1.0], [3.0], [0.1]])
    safe, most = int(floor * count), min(count + room, 40)
    counts = tokens_of_heads(scores, count, safe, most)
    left = [sorted(row.tolist())[::-1][safe:most] for row in scores]
    chosen = sorted(((score, head) for head, row in enumerate(left) for score in row), reverse=True)
    chosen = chosen[: count * 3 - safe * 3]
    assert counts == [safe + sum(head == each for _, each in chosen) for head in range(3)]


def test_of_equal_scores_all_heads_get_as_many():
    assert tokens_of_heads(torch.ones(4, 20), 7, 0, 20) == [7] * 4


@pytest.mark.parametrize(
    ("num_pages", "num_slots", "pages"),
    [
        (10, 2000, [19, 15, 10, 5, 1]),  # 296.4 tokens behind the window fall to 7.6
        (10, 304, [19, 15, 10, 5, 1]),  # or from 296, which is all that such a prompt has
        (10, 200, [10] * 5),  # a prompt of less than twice the budget
        (1, 2000, [1] * 5),  # no layer without the window and a token
    ],
)
def test_budgets_fall_from_layer_to_layer(num_pages, num_slots, pages):
    policy = policy_of("pyramidkv:tokens=160,window=8")
    found = policy.pages_of_layers(5, Share(num_pages, 16, num_slots))
    assert found == pages
    assert sum(found) == 5 * num_pages
    assert policy.pages_of_layers(1, Share(num_pages, 16, num_slots)) == [num_pages]
