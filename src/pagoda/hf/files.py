"""The pages of a `PagedCache` as a session file, and back into another one of the same model and format.

Pages that all groups of layers hold are written, each after the one that it continues. Of a file nothing is believed:
each record must be the page of its tokens after a page that was read before. Knows neither transformers nor formats.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pagoda.cache.cache import Cache
from pagoda.cache.pool import PagePool
from pagoda.cache.prefix.held import NO_PAGE
from pagoda.cache.prefix.keys import TOKEN_NBYTES, TOKEN_TYPE, key_tokens
from pagoda.cache.prefix.names import PageNames, name_after
from pagoda.cache.prefix.tree import Node
from pagoda.cache.sequence import CachedSequence
from pagoda.cache.session_file import SessionFile, write_session
from pagoda.cache.session_parts import Conversation, Description
from pagoda.cache.tiers.record import TENANT_NBYTES, Draft, Kind, Label, Record
from pagoda.errors import PageRecordError, SessionError
from pagoda.hf.rows import NAMESPACE

TENANT = blake2b(NAMESPACE.tenant.encode(), digest_size=TENANT_NBYTES).digest()
NO_TOKENS = Conversation(np.zeros(0, np.int32))


@dataclass(frozen=True)
class Shelf:
    """Pages and what they are of: a `cache` over `pools`, which are named by `names`. Tokens are below `vocab_size`."""

    cache: Cache
    pools: Sequence[PagePool]
    names: PageNames
    vocab_size: int

    def label(self, group: int, parent: bytes, num_tokens: int, tokens: bytes) -> Label:
        """Of the page of `tokens` that ends after `num_tokens`, after the one called `parent`."""
        name, root = name_after(parent, tokens), self.names.before_all(NAMESPACE)
        return Label(
            *(self.names.identity.digest, root, TENANT, Kind.PAGE, group, name, parent, num_tokens, tokens),
        )


def save_pages(path: Path, shelf: Shelf, model: str) -> None:
    """Write all pages that can be hit. Raises SessionError if that fails, and leaves a file that was there."""
    description = Description(shelf.names.identity, model, int(time.time() * 1000))
    write_session(path, description, NO_TOKENS, _records(shelf, description.created_ms))


def load_pages(file: SessionFile, shelf: Shelf) -> int:
    """Take over the pages of a file as far as there is room; how many tokens they hold.

    Raises SessionError if the file is of something else, or any page of it is not what it says; pages before that stay.
    """
    file.description.check_is_of(shelf.names.identity)
    growth = _Growth(shelf)
    records, num_tokens = file.records(), 0
    try:
        while page := tuple(islice(records, len(shelf.pools))):
            num_tokens += growth.add(page)
    except PageRecordError as error:
        raise SessionError(f"{file.path} is damaged: a page of it cannot be used, {error}; save it again.") from error
    finally:
        growth.end()
    return num_tokens


def _records(shelf: Shelf, created_ms: int) -> Iterator[memoryview]:
    for nodes, num_tokens in _pages(shelf.cache):
        parent = nodes[0].parent
        assert parent is not None
        for group, (node, pool) in enumerate(zip(nodes, shelf.pools, strict=True)):
            draft = Draft(shelf.label(group, shelf.names.of(parent), num_tokens, node.key), pool.geometry.page_nbytes)
            draft.body[:] = pool.pages[node.page].numpy()
            yield draft.seal(created_ms)


def _pages(cache: Cache) -> Iterator[tuple[list[Node], int]]:
    """The nodes of each page that all groups hold, and so all before it, one of each group, and where it ends."""
    trees = [group.prefixes.tree for group in cache.groups if group.prefixes is not None]
    pending = [([tree.root(NAMESPACE) for tree in trees], 0)]
    while pending:
        nodes, start = pending.pop()
        if start:
            yield nodes, start
        for key in nodes[cache.main_index].children:
            children = [child for node in nodes if (child := node.children.get(key)) and child.page != NO_PAGE]
            if len(children) == len(trees):
                pending.append((children, start + len(key) // TOKEN_NBYTES))


class _Known(NamedTuple):
    """A page that was read: which one it continues, where it ends, and its tokens."""

    parent: bytes
    num_tokens: int
    tokens: bytes


class _Growth:
    """Pages of a file on their way into the cache, one sequence at a time for as long as each continues the last."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._root = shelf.names.before_all(NAMESPACE)
        self._known: dict[bytes, _Known] = {}
        self._sequence: CachedSequence | None = None
        self._tokens: array[int] = array(TOKEN_TYPE)
        self._name = self._root

    def add(self, page: tuple[Record, ...]) -> int:
        """Take over a page, the records of all groups; how many tokens it holds, none if there is no room for it."""
        header, tokens = page[0].header, page[0].tokens
        start = self._check(page)
        self._known[header.name] = _Known(header.parent, header.num_tokens, tokens)
        if header.parent != self._name or self._sequence is None:
            self._resume(header.parent)
        sequence, own, cache = self._sequence, key_tokens(tokens), self._shelf.cache
        if sequence is None or not cache.reserve(sequence, len(own)):
            self.end()
            return 0
        for record, pool, table in zip(page, self._shelf.pools, sequence.tables, strict=True):
            target = pool.pages[table.pages[start // self._shelf.names.identity.page_tokens]]
            target.numpy()[:] = np.frombuffer(record.body, np.uint8)
        self._tokens.extend(own)
        cache.commit(sequence, self._tokens, len(self._tokens))
        self._name = header.name
        return len(own)

    def end(self) -> None:
        """What was taken over stays."""
        if self._sequence is not None:
            self._shelf.cache.release(self._sequence, self._tokens)
            self._sequence = None

    def _check(self, page: tuple[Record, ...]) -> int:
        """Raise PageRecordError unless these are the records of one page; where it starts."""
        shelf, header, tokens = self._shelf, page[0].header, page[0].tokens
        size = shelf.names.identity.page_tokens
        above = self._known.get(header.parent)
        start = 0 if above is None else above.num_tokens
        if len(page) < len(shelf.pools) or (above is None and header.parent != self._root) or start % size:
            raise PageRecordError("parent", "it continues no whole page that comes before it")
        if not 0 < len(tokens) <= size * TOKEN_NBYTES:
            raise PageRecordError("tokens", "it has not as many tokens as a page may have")
        if not all(0 <= token < shelf.vocab_size for token in key_tokens(tokens)):
            raise PageRecordError("tokens", "a token of it is none of the model's")
        for group, (record, pool) in enumerate(zip(page, shelf.pools, strict=True)):
            record.check_is(shelf.label(group, header.parent, start + len(tokens) // TOKEN_NBYTES, tokens))
            if len(record.body) != pool.geometry.page_nbytes:
                raise PageRecordError("length", "it is not as long as pages are")
        return start

    def _resume(self, name: bytes) -> None:
        """Go on after another page, if it is still there."""
        self.end()
        runs, end = [], name
        while name != self._root:
            name, _, tokens = self._known[name]
            runs.append(tokens)
        self._tokens, self._name = array(TOKEN_TYPE, key_tokens(b"".join(reversed(runs)))), end
        cache = self._shelf.cache
        hit = cache.match(NAMESPACE, self._tokens, len(self._tokens))
        if hit.num_tokens == len(self._tokens):
            self._sequence = cache.attach(hit, 0)
