"""Pages in the memory of the host: every copy is over when its call returns, so there is no order to keep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pagoda.cache.transfers.base import OVER, Event, PageCopy

if TYPE_CHECKING:
    import torch


class HostTransfers:
    """Of `pages`, uint8 [num_pages, page_nbytes]."""

    def __init__(self, pages: torch.Tensor) -> None:
        self._pages = pages

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return self._pages.numpy()

    def memory(self, nbytes: int) -> NDArray[np.uint8]:
        return np.empty(nbytes, np.uint8)

    def read(self, copies: Sequence[PageCopy]) -> Event:
        for page, body in copies:
            body[:] = self._bytes[page]
        return OVER

    def before_change(self, page: int) -> None: ...

    def moment(self) -> Event:
        return OVER

    def write(self, copies: Sequence[PageCopy], after: Event) -> Event:  # noqa: ARG002
        for page, body in copies:
            self._bytes[page] = body
        return OVER

    def close(self) -> None: ...
