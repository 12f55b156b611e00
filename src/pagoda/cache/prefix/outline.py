"""The prefix tree as people look at it: runs of tokens that no prompt has parted in, and how often each was used.

Only reads. Knows nodes; text is the business of whoever has a tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from pagoda.cache.prefix.held import NO_PAGE
from pagoda.cache.prefix.keys import TOKEN_NBYTES, key_tokens
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.prefix.tree import Node, PrefixTree


@dataclass
class Branch:
    """A run of tokens after the first `start` of a prompt, on `num_pages` pages; its `num_hits` are of its first page.

    So many of its pages are used now, and leased. `num_hidden` children were left out. `first_key`, the tokens of its
    first page, tells it from its siblings, however far it goes on.
    """

    first_key: bytes
    start: int
    num_tokens: int
    first_tokens: list[int]
    num_pages: int
    num_hits: int
    num_in_use: int
    num_leased: int
    children: list[Branch] = field(default_factory=list)
    num_hidden: int = 0


@dataclass
class Outline:
    """The branches of one namespace."""

    namespace: Namespace
    branches: list[Branch]
    num_hidden: int = 0


def outline(
    tree: PrefixTree, is_used: Callable[[int], bool], most: int, most_tokens: int, tenant: str | None
) -> list[Outline]:
    """Up to `most` branches of all namespaces of a tenant, or of everybody (None), those first that saved most.

    Each has its first `most_tokens`. Of a page is asked whether it `is_used` now.
    """
    roots = [(namespace, root) for namespace, root in tree.roots() if tenant in (None, namespace.tenant)]
    outlines = [Outline(namespace, []) for namespace, _ in roots]
    tickets = count()
    pending: list[tuple[int, int, Node, int, Outline | Branch]] = []

    def offer(parent: Node, start: int, into: Outline | Branch) -> None:
        for child in parent.children.values():
            saved = child.num_hits * len(child.key)
            heappush(pending, (-saved, next(tickets), child, start, into))

    for each, (_, root) in zip(outlines, roots, strict=True):
        offer(root, 0, each)
    num_shown = 0
    while pending:
        _, _, node, start, into = heappop(pending)
        if num_shown == most:
            into.num_hidden += 1
            continue
        num_shown += 1
        run = list(_run(node))
        branch = _branch(run, start, is_used, most_tokens)
        (into.branches if isinstance(into, Outline) else into.children).append(branch)
        offer(run[-1], start + branch.num_tokens, branch)
    return [each for each in outlines if each.branches or each.num_hidden]


def _run(node: Node) -> Iterator[Node]:
    """`node`, and those below it for as long as nothing parts there."""
    yield node
    while len(node.children) == 1:
        node = next(iter(node.children.values()))
        yield node


def _branch(run: list[Node], start: int, is_used: Callable[[int], bool], most_tokens: int) -> Branch:
    tokens = key_tokens(b"".join(node.key for node in run)[: most_tokens * TOKEN_NBYTES])
    held = [node for node in run if node.page != NO_PAGE]
    return Branch(
        first_key=run[0].key,
        start=start,
        num_tokens=sum(len(node.key) for node in run) // TOKEN_NBYTES,
        first_tokens=tokens,
        num_pages=len(held),
        num_hits=run[0].num_hits,
        num_in_use=sum(is_used(node.page) for node in held),
        num_leased=sum(node.num_leases > 0 for node in held),
    )
