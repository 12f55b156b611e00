"""The prefix tree: longest matches to the token, namespaces, fan-out."""

import random

import pytest

from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.tree import LINEAR_SCAN_CHILDREN, PrefixTree

PAGE_TOKENS = 4


@pytest.fixture
def tree():
    return PrefixTree(PAGE_TOKENS)


def insert(tree, tokens, namespace=""):
    """Insert a run of pages; a page's number is the number of tokens before it."""
    node = tree.root(namespace)
    for start in range(0, len(tokens), PAGE_TOKENS):
        key = token_key(tokens[start : start + PAGE_TOKENS])
        node = node.children.get(key) or tree.insert(node, key, start)
    return node


def match(tree, tokens, namespace=""):
    """(whole pages, tokens of a further page) held of `tokens`."""
    path, _, partial_tokens = tree.match(tree.root(namespace), token_key(tokens))
    return len(path), partial_tokens


def test_an_empty_tree_matches_nothing(tree):
    assert match(tree, range(9)) == (0, 0)


def test_an_empty_prompt_matches_nothing(tree):
    insert(tree, range(8))
    assert match(tree, []) == (0, 0)


def test_whole_pages_match_in_order(tree):
    insert(tree, range(12))
    path, partial, _ = tree.match(tree.root(""), token_key(range(12)))
    assert [node.page for node in path] == [0, 4, 8]
    assert partial is None


@pytest.mark.parametrize("num_tokens", range(13))
def test_a_match_is_exact_to_the_token(tree, num_tokens):
    insert(tree, range(12))
    assert match(tree, [*range(num_tokens), 99, 99, 99, 99]) == divmod(num_tokens, PAGE_TOKENS)


def test_a_prompt_that_ends_inside_a_page_matches_to_its_end(tree):
    insert(tree, range(8))
    assert match(tree, range(6)) == (1, 2)


def test_the_sibling_with_most_common_tokens_is_found(tree):
    insert(tree, [1, 2, 3, 4])
    insert(tree, [1, 2, 9, 9])
    insert(tree, [7, 7, 7, 7])
    _, partial, tokens = tree.match(tree.root(""), token_key([1, 2, 9, 5]))
    assert (partial.key, tokens) == (token_key([1, 2, 9, 9]), 3)


def test_a_short_page_matches_but_is_never_on_the_path(tree):
    insert(tree, [1, 2, 3, 4, 5, 6])
    assert match(tree, [1, 2, 3, 4, 5, 6]) == (1, 2)
    assert match(tree, [1, 2, 3, 4, 5, 6, 7, 8]) == (1, 2)


def test_tokens_that_share_bytes_only_do_not_match(tree):
    insert(tree, [0x0101, 0, 0, 0])
    assert match(tree, [0x0201, 0, 0, 0]) == (0, 0)


def test_namespaces_share_nothing(tree):
    insert(tree, range(8), namespace="a")
    assert match(tree, range(8), namespace="b") == (0, 0)


@pytest.mark.parametrize("num_children", [1, LINEAR_SCAN_CHILDREN, LINEAR_SCAN_CHILDREN + 1, 200])
def test_the_closest_child_is_found_at_any_fan_out(tree, num_children):
    draw = random.Random(num_children)
    pages = {tuple(draw.choices(range(3), k=PAGE_TOKENS)) for _ in range(num_children)}
    for page in pages:
        insert(tree, page)
    for _ in range(100):
        wanted = draw.choices(range(3), k=PAGE_TOKENS)
        shared = [next((i for i in range(PAGE_TOKENS) if page[i] != wanted[i]), PAGE_TOKENS) for page in pages]
        assert tree.closest(tree.root(""), token_key(wanted))[1] == max(shared)


def test_removing_children_keeps_a_large_fan_out_right(tree):
    root = tree.root("")
    nodes = [insert(tree, [token] * PAGE_TOKENS) for token in range(3 * LINEAR_SCAN_CHILDREN)]
    assert match(tree, [5, 5, 0, 0]) == (0, 2)
    tree.remove(nodes[5])
    assert match(tree, [5, 5, 0, 0]) == (0, 0)
    assert tree.num_nodes == len(root.children) == len(nodes) - 1


def test_nodes_come_parents_first(tree):
    insert(tree, range(12))
    insert(tree, [0, 1, 2, 3, 9, 9, 9, 9])
    seen = {tree.root("")}
    for node in tree.nodes():
        assert node.parent in seen
        seen.add(node)
    assert len(seen) == tree.num_nodes + 1
