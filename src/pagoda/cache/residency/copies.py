"""Copies the bytes of pages into records, and leaves out what is in them of nobody's concern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pagoda.cache.tiers.record import Draft, Kind, Label

if TYPE_CHECKING:
    from pagoda.cache.cache import PageStore


def copied(label: Label, store: PageStore, pages: Sequence[int]) -> Draft:
    """A record of `label` with the bytes of `pages`, one after the other."""
    bodies = [store.bytes_of(page) for page in pages]
    draft, start = Draft(label, sum(body.nbytes for body in bodies)), 0
    for body in bodies:
        draft.body[start : start + body.nbytes] = body
        start += body.nbytes
    return draft


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
