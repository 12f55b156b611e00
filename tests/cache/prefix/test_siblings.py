"""The closest of many keys, against a scan of all of them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.cache.prefix.keys import common_tokens, token_key
from pagoda.cache.prefix.siblings import MOST_LISTED, Siblings

# Few tokens and long runs of one, so that keys begin alike, end inside each other and part late.
KEYS = st.lists(st.sampled_from([0, 1, 2, 2**30]), min_size=1, max_size=9).map(
    lambda tokens: token_key([7, 7, 7, *tokens])
)


@given(st.lists(KEYS, unique=True, min_size=1, max_size=80), st.data())
@settings(max_examples=150)
def test_the_closest_shares_as_much_as_any(keys, data):
    siblings, held = Siblings([]), []
    for key in keys:
        siblings.add(key)
        held.append(key)
        if len(held) > 1 and data.draw(st.booleans()):
            gone = held.pop(data.draw(st.integers(0, len(held) - 1)))
            siblings.remove(gone)
        wanted = data.draw(KEYS)
        most = max(common_tokens(each, wanted) for each in held)
        found = siblings.closest(wanted)
        assert found in held
        assert common_tokens(found, wanted) == most


def test_a_set_that_was_emptied_can_be_used_again():
    keys = [token_key([5, 5, 5, number]) for number in range(4 * MOST_LISTED)]
    siblings = Siblings(keys)
    for key in keys:
        siblings.remove(key)
    siblings.add(keys[0])
    assert siblings.closest(token_key([9])) == keys[0]
