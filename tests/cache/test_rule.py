"""What a window and the sinks before it keep of a sequence, counted out."""

import pytest

from pagoda.cache.groups.rule import KeepAll, KeepRule, window_pages
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import LayerGroup, Reach

PAGE_TOKENS = 16


def rule_of(span: int, sink_tokens: int) -> KeepRule:
    return LayerGroup(Reach.SLIDING, span, (AttentionLayout(1, 8, 8),), sink_tokens)


def held_pages(rule: KeepRule, num_tokens: int, step_tokens: int) -> set[int]:
    """Pages with a token that a step behind `num_tokens` reads or writes."""
    near = range(rule.first_needed(num_tokens), num_tokens + step_tokens)
    return {token // PAGE_TOKENS for token in (*range(min(rule.sink_tokens, num_tokens)), *near)}


@pytest.mark.parametrize("sink_tokens", [0, 1, 4, 16, 33])
@pytest.mark.parametrize("span", [1, 2, 17, 40])
@pytest.mark.parametrize("step_tokens", [1, 16, 50])
def test_no_step_holds_more_pages_than_a_window_and_its_sinks_take(span, sink_tokens, step_tokens):
    rule = rule_of(span, sink_tokens)
    most = window_pages(span, PAGE_TOKENS, step_tokens, sink_tokens)
    counts = [len(held_pages(rule, num_tokens, step_tokens)) for num_tokens in range(300)]
    assert most - 2 <= max(counts) <= most


def test_groups_with_sinks_say_so():
    assert rule_of(40, 4).name == "sliding 40 after 4"
    assert rule_of(40, 0).name == "sliding 40"
    assert KeepAll().sink_tokens == 0
