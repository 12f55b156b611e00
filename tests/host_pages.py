"""Pages of tests whose bytes are arrays: what `PageStore` asks of them beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pagoda.cache.transfers.base import OVER, Event, PageCopy


class HostPages:
    """`bytes_of` has the bytes of a page, as a view."""

    def bytes_of(self, page: int) -> Any:
        raise NotImplementedError

    @property
    def page_nbytes(self) -> int:
        nbytes: int = self.bytes_of(0).nbytes
        return nbytes

    def memory(self, nbytes: int) -> Any:
        return np.empty(nbytes, np.uint8)

    def read(self, copies: Sequence[PageCopy]) -> Event:
        for page, body in copies:
            body[:] = self.bytes_of(page)
        return OVER

    def moment(self) -> Event:
        return OVER

    def write(self, copies: Sequence[PageCopy], after: Event) -> Event:
        for page, body in copies:
            self.bytes_of(page)[:] = body
        return OVER
