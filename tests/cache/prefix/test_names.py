"""Names of pages: the same everywhere, and others for whatever decides a page's bytes."""

import subprocess
import sys

import pytest

from pagoda.cache.prefix.held import NO_PAGE
from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.names import NAME_NBYTES, Identity, PageNames
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.prefix.tree import PrefixTree

IDENTITY = Identity(weights="a", layout="b", format="int8", page_tokens=2, positions="rope")
TOKENS = [1, 2, 3, 4]


def name(namespace: Namespace, *pages: list[int], identity: Identity = IDENTITY) -> bytes:
    """Of the last of `pages` in a tree of its own."""
    tree = PrefixTree(4)
    node = tree.root(namespace)
    for number, page in enumerate(pages):
        node = tree.insert(node, token_key(page), number)
    return PageNames(identity).of(node)


def test_names_of_pages_are_the_same_everywhere_and_differ_by_what_decides_them() -> None:
    first = name(Namespace(), [1, 2], [3, 4])
    assert first == name(Namespace(), [1, 2], [3, 4])
    assert len(first) == NAME_NBYTES
    others = [
        name(Namespace(), [1, 2, 3, 4]),
        name(Namespace(), [1, 2]),
        name(Namespace(), [1, 3], [3, 4]),
        name(Namespace(salt="x"), [1, 2], [3, 4]),
        name(Namespace(tenant="x"), [1, 2], [3, 4]),
    ]
    assert len({first, *others}) == 1 + len(others)


@pytest.mark.parametrize("field", Identity._fields)
def test_other_pages_have_other_names(field):
    other = IDENTITY._replace(**{field: 3 if field == "page_tokens" else "other"})
    assert name(Namespace(), [1, 2], identity=other) != name(Namespace(), [1, 2])


def test_names_of_tokens_are_those_of_their_nodes():
    names = list(PageNames(IDENTITY).of_tokens(Namespace(salt="s"), [*TOKENS, 5]))
    assert names == [name(Namespace(salt="s"), [1, 2]), name(Namespace(salt="s"), [1, 2], [3, 4])]
    assert not list(PageNames(IDENTITY).of_tokens(Namespace(), [1]))


def test_a_page_whose_parent_was_evicted_keeps_its_name():
    tree = PrefixTree(2)
    parent = tree.insert(tree.root(Namespace()), token_key([1, 2]), 0)
    child = tree.insert(parent, token_key([3, 4]), 1)
    parent.page = NO_PAGE
    assert PageNames(IDENTITY).of(child) == name(Namespace(), [1, 2], [3, 4])


def test_names_are_made_when_they_are_asked_for():
    tree = PrefixTree(2)
    first = tree.insert(tree.root(Namespace()), token_key([1, 2]), 0)
    second = tree.insert(first, token_key([3, 4]), 1)
    assert first.name is None
    PageNames(IDENTITY).of(first)
    assert first.name is not None
    assert second.name is None


def test_another_process_gives_the_same_name():
    code = (
        "from pagoda.cache.prefix.names import *; from pagoda.cache.prefix.namespace import Namespace;"
        f"print(*(each.hex() for each in PageNames({IDENTITY!r}).of_tokens(Namespace(tenant='t'), {TOKENS})))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.split() == [each.hex() for each in PageNames(IDENTITY).of_tokens(Namespace(tenant="t"), TOKENS)]
