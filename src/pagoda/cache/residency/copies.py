"""Copies the bytes of pages into records, and leaves out what is in them of nobody's concern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pagoda.cache.tiers.record import Draft, Kind, Label
from pagoda.cache.transfers.base import Event, PageCopy, page_copies

if TYPE_CHECKING:
    from pagoda.cache.cache import PageStore


def copied(store: PageStore, wanted: Sequence[tuple[Label, Sequence[int]]]) -> tuple[list[Draft], Event]:
    """Records of labels, each with the bytes of its pages, one after the other; they are there once the event is over.

    Nobody may look at them before.
    """
    drafts, copies = list[Draft](), list[PageCopy]()
    for label, pages in wanted:
        drafts.append(Draft(label, len(pages) * store.page_nbytes, store.memory))
        copies += page_copies(pages, drafts[-1].body, store.page_nbytes)
    return drafts, store.read(copies)


def blank_rest(draft: Draft, store: PageStore, page_tokens: int) -> None:
    """Zero what lies behind the last token of a copy: it is of whoever had the page before."""
    label = draft.label
    rest = label.num_tokens % page_tokens
    if label.kind is Kind.STATE or not rest or not draft.body.nbytes:
        return
    before = draft.body.nbytes // num_pages(label, page_tokens) * (num_pages(label, page_tokens) - 1)
    store.blank(draft.body[before:], rest)


def num_pages(label: Label, page_tokens: int) -> int:
    """How many pages a record is of: all those of an encoder's output, else one."""
    return -(-label.num_tokens // page_tokens) if label.kind is Kind.ENCODER else 1
