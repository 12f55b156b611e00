"""What could be resumed is what a cache says that has the earlier prompt."""

from __future__ import annotations

import pytest

from pagoda.analysis.rehearsal import Rehearsal
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import CacheSpec, LayerGroup, Reach
from pagoda.layouts.state import StateKind, StateLayout, StateTensor

LAYOUT = AttentionLayout(num_kv_heads=1, key_width=8, value_width=8)
FULL = LayerGroup(Reach.FULL, None, (LAYOUT,))
WINDOW = LayerGroup(Reach.SLIDING, 32, (LAYOUT,))
CHUNKS = LayerGroup(Reach.CHUNKED, 64, (LAYOUT,))
STATE = StateLayout((StateTensor(StateKind.RECURRENT, 0, (4, 4), full_precision=True),))
EARLIER = list(range(500))


def later(num_shared: int, num_new: int = 20) -> list[int]:
    return [*EARLIER[:num_shared], *range(1000, 1000 + num_new)]


@pytest.mark.parametrize("num_shared", [0, 1, 37, 499, 500])
@pytest.mark.parametrize("groups", [(), (FULL,), (FULL, WINDOW), (WINDOW,), (FULL, CHUNKS)])
def test_what_is_shared_is_resumed_where_all_is_kept_that_is_needed(groups, num_shared):
    resumed = Rehearsal(CacheSpec(groups, ()), page_tokens=16).resumed_tokens(EARLIER, later(num_shared))
    assert resumed == num_shared


def test_the_last_token_of_a_prompt_is_computed_again():
    rehearsal = Rehearsal(CacheSpec((FULL,), ()), page_tokens=16)
    assert rehearsal.resumed_tokens(EARLIER, EARLIER) == 499
    assert rehearsal.resumed_tokens(EARLIER, EARLIER[:100]) == 99


@pytest.mark.parametrize(
    ("interval", "num_shared", "expected"),
    [(128, 300, 256), (128, 100, 0), (None, 300, 0), (None, 500, 500), (128, 128, 128)],
)
def test_states_are_resumed_where_they_were_copied(interval, num_shared, expected):
    spec = CacheSpec((FULL,), (), (STATE,))
    rehearsal = Rehearsal(spec, page_tokens=16, interval_tokens=interval, step_tokens=200)
    assert rehearsal.resumed_tokens(EARLIER, later(num_shared)) == expected
