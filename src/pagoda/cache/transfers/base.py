"""What moves the bytes of pages between a pool and arrays on the host: many pages in one call, that may end later.

Knows page numbers and bytes, and nothing of what they mean. Only the thread that steps reads, tells the moment and
announces changes; any thread may write, and wait for the end of either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class PageCopy(NamedTuple):
    """The bytes of one page, and where they are on the host or are to be: uint8 [page_nbytes]."""

    page: int
    body: NDArray[np.uint8]


class Event(Protocol):
    """A point in the order of work: over once all work before it is done."""

    @property
    def is_over(self) -> bool: ...

    def wait(self) -> None:
        """Return once it is over. May be called on any thread."""


class Over:
    """An event that was over when it was made."""

    is_over = True

    def wait(self) -> None: ...


OVER = Over()


class Transfers(Protocol):
    """Of the pages of one pool."""

    def memory(self, nbytes: int) -> NDArray[np.uint8]:
        """Where copies of pages had better lie on the host: uint8 [nbytes], of any content."""

    def read(self, copies: Sequence[PageCopy]) -> Event:
        """Copy pages, as they are now, to the host. Bodies must not be looked at or changed before that is over."""

    def before_change(self, page: int) -> None:
        """Other bytes are about to be computed into a page."""

    def moment(self) -> Event:
        """All that was told to be computed so far, changes of pages included."""

    def write(self, copies: Sequence[PageCopy], after: Event) -> Event:
        """Copy bodies into pages, which nobody may have changed or asked for since the moment `after`.

        Nothing may be told to compute with the pages, and bodies must not be changed, before that is over.
        """

    def close(self) -> None:
        """Return once nothing is on its way."""


def page_copies(pages: Sequence[int], body: NDArray[np.uint8], page_nbytes: int) -> Iterator[PageCopy]:
    """Of `pages` whose bytes are one after the other in `body`."""
    for number, page in enumerate(pages):
        yield PageCopy(page, body[number * page_nbytes : (number + 1) * page_nbytes])
