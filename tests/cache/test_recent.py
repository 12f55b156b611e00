"""What is remembered of late sequences, and which of them is closest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.recent import ENTRY_NBYTES, Looked, RecentSequences, closest, most_alike, resembles
from pagoda.cache.report import CacheReport


def looked(name: str, tokens: list[int], tenant: str = "") -> Looked:
    return Looked(name, Namespace(tenant=tenant), token_key(tokens), len(tokens), CacheReport(len(tokens)))


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("ab"), st.integers(0, 600), st.booleans()), max_size=60))
def test_memory_is_bounded_and_counted(steps):
    most = 8 * ENTRY_NBYTES
    recent = RecentSequences(most)
    for number, tenant, num_tokens, ends in steps:
        if ends:
            recent.end(tenant, str(number), token_key(range(num_tokens)))
        else:
            recent.add(looked(str(number), list(range(num_tokens)), tenant))
        kept = recent.all()
        assert recent.nbytes == sum(each.nbytes for each in kept) <= most
        assert len({(each.namespace.tenant, each.request_id) for each in kept}) == len(kept)


def test_no_tenant_pushes_out_what_another_has_little_of():
    recent = RecentSequences(8 * ENTRY_NBYTES)
    recent.add(looked("few", [1, 2], "a"))
    for number in range(100):
        recent.add(looked(str(number), [number], "b"))
    assert [each.request_id for each in recent.all() if each.namespace.tenant == "a"] == ["few"]
    assert recent.all()[-1].request_id == "99"


def test_an_answer_comes_behind_its_prompt():
    recent = RecentSequences(1 << 16)
    recent.add(looked("one", [1, 2, 3]))
    recent.end("", "one", token_key([1, 2, 3, 4, 5]))
    entry = recent.all()[0]
    assert (entry.prompt_key, entry.key) == (token_key([1, 2, 3]), token_key([1, 2, 3, 4, 5]))


def test_it_is_known_what_ran_beside_what():
    recent = RecentSequences(1 << 16)
    for name in ("one", "two", "three"):
        recent.add(looked(name, [1]))
        if name == "one":
            recent.end("", "one", token_key([1]))
    one, two, three = recent.all()
    assert (one.ran_at(three.begin), two.ran_at(three.begin), three.ran_at(two.begin)) == (False, True, False)


def test_the_closest_shares_most_and_of_equals_is_the_last():
    others = [looked("a", [1, 2, 9]), looked("b", [1, 2, 3, 9]), looked("c", [1, 2, 3, 8]), looked("d", [7])]
    found, num_tokens = closest(token_key([1, 2, 3, 4]), others)
    assert found is not None
    assert (found.request_id, num_tokens) == ("c", 3)
    assert closest(token_key([5]), others) == (None, 0)


def test_the_most_alike_has_the_most_tokens_in_common_then_the_most_first_ones():
    key = token_key(range(100))
    others = [
        looked("a", [7, *range(1, 100)]),
        looked("b", [*range(99), 7]),
        looked("c", [*range(9), *range(500, 600)]),
    ]
    assert most_alike(key, others) == (others[1], 99)
    assert most_alike(key, [others[0], others[2]]) == (others[0], 0)
    assert most_alike(key, [looked("d", [600])]) == (None, 0)
    assert most_alike(key, []) == (None, 0)


def test_rows_of_tokens_tell_what_resembles_what():
    tail = list(range(100))
    assert resembles(token_key([1, 2, 3, *tail]), token_key([9, *tail]))
    assert not resembles(token_key(tail), token_key(tail[::-1]))
    assert not resembles(token_key([]), token_key(tail))


def test_those_that_begin_so_are_of_one_namespace():
    recent = RecentSequences(1 << 16)
    for name, tokens, tenant in (("a", [1, 2, 3], "x"), ("b", [1, 9], "x"), ("c", [1, 2], "y")):
        recent.add(looked(name, tokens, tenant))
    assert [each.request_id for each in recent.beginning(Namespace(tenant="x"), token_key([1, 2]))] == ["a"]
    assert recent.beginning(Namespace(tenant="z"), b"") == []
