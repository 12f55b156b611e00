"""The page pool: the bytes behind the pages of one layer group.

One run of memory: on the host mapped but not touched until a page is used, in huge pages where the system grants them;
on a GPU taken at once. Knows which bytes belong to a page and nothing of what they mean. How copies of pages leave and
come is `transfers`' business.
"""

import mmap
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pagoda.cache.summaries import KeySummaries
from pagoda.cache.transfers.base import Event, PageCopy, Transfers
from pagoda.cache.transfers.host import HostTransfers
from pagoda.formats.page import PageGeometry
from pagoda.formats.state import StateGeometry

# All bits set is NaN in fp32, fp16 and bf16.
POISON = 0xFF
HOST = torch.device("cpu")


class PagePool:
    """`pages` is uint8 [num_pages, page_nbytes]. With `poison`, pages are filled with NaN before they are written.

    With `is_summarised` there is room for summaries of their keys. `transfers` makes what copies the pages out and in.
    """

    def __init__(
        self,
        geometry: PageGeometry | StateGeometry,
        num_pages: int,
        poison: bool = False,
        device: torch.device = HOST,
        is_summarised: bool = False,
        transfers: Callable[[torch.Tensor], Transfers] = HostTransfers,
    ) -> None:
        self.geometry = geometry
        nbytes = num_pages * geometry.page_nbytes
        memory = _map(nbytes) if device.type == "cpu" else torch.zeros(nbytes, dtype=torch.uint8, device=device)
        self.pages = memory.view(num_pages, geometry.page_nbytes)
        self.page_nbytes = geometry.page_nbytes
        self._transfers = transfers(self.pages)
        self._poison = poison
        self.summaries: KeySummaries | None = None
        if is_summarised:
            assert isinstance(geometry, PageGeometry), "a state has no keys"
            self.summaries = KeySummaries(geometry, num_pages, poison, device)

    def prepare(self, page: int) -> None:
        self._transfers.before_change(page)
        if self.summaries is not None:
            self.summaries.forget(page)
        if self._poison:
            self.pages[page].fill_(POISON)

    def copy(self, source: int, target: int) -> None:
        self._transfers.before_change(target)
        if self.summaries is not None:
            self.summaries.forget(target)
        self.pages[target].copy_(self.pages[source])

    def memory(self, nbytes: int) -> NDArray[np.uint8]:
        return self._transfers.memory(nbytes)

    def read(self, copies: Sequence[PageCopy]) -> Event:
        return self._transfers.read(copies)

    def moment(self) -> Event:
        return self._transfers.moment()

    def write(self, copies: Sequence[PageCopy], after: Event) -> Event:
        return self._transfers.write(copies, after)

    def close(self) -> None:
        """Return once no page is on its way."""
        self._transfers.close()

    def blank(self, body: NDArray[np.uint8], num_tokens: int) -> None:
        """Of a copy of a page, zero what is behind its first tokens: nobody is to see what lay there before."""
        geometry = self.geometry
        assert isinstance(geometry, PageGeometry), "a state is whole"
        data = torch.from_numpy(body)
        offsets = torch.arange(num_tokens, geometry.page_tokens)
        for layer, slots in enumerate(geometry.slots):
            format = geometry.format_of(layer)
            for slot in slots:
                plane = slot.plane
                zeros = torch.zeros(len(offsets), plane.num_heads, plane.width)
                part = data[slot.offset : slot.offset + slot.nbytes].unsqueeze(0)
                format.write(part, plane, torch.zeros_like(offsets), offsets, zeros)


def _map(nbytes: int) -> torch.Tensor:
    """Zeroed memory that takes no room until it is written. Shared memory, Python's default, gets no huge pages."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
