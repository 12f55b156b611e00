"""Where weights lie: on a GPU, or in huge pages, if the system grants them and there is room for a copy.

A decode step reads every weight once. From small pages, as files are mapped, the processor looks up an address every
4 KiB; in huge pages the same step was measured to take 15 % less (benchmarks/LOG.md). Codes that were laid out in such
memory stay. Knows tensors and memory, and which layers are coded.
"""

from __future__ import annotations

from typing import Any

import torch

from pagoda.errors import DeviceUnavailableError, KernelUnavailableError
from pagoda.kernels.native_calls import allocate
from pagoda.machine import available_memory_nbytes, huge_pages, let_go_of_file
from pagoda.models.coded import coded_weights

# Smaller models live in the caches.
MIN_NBYTES = 64 << 20
ALIGNMENT = 64
CPU = torch.device("cpu")


def place(network: Any, device: torch.device) -> None:
    """Move a network to where it computes. Raises DeviceUnavailableError if a GPU has no room for it."""
    if device.type == "cpu":
        move_to_huge_pages(network)
        return
    try:
        network.to(device)
    except torch.OutOfMemoryError as error:
        nbytes = sum(each.nbytes for each in network.parameters())
        raise DeviceUnavailableError(
            f"The GPU has no room for {nbytes} bytes of weights ({error}); end what else runs on it, or choose "
            "device=cpu."
        ) from error
    assert all(each.is_on_device for each in coded_weights(network).values())


def move_to_huge_pages(network: Any, min_nbytes: int = MIN_NBYTES) -> bool:
    """Copy the parameters of `network` to huge pages, each once however often it is tied; whether that was done.

    What is mapped from a file leaves this process's memory as it is copied.
    """
    staying = {id(each.data) for each in coded_weights(network).values() if each.stays}
    parameters = [
        each for each in network.parameters() if each.is_cpu and each.is_contiguous() and id(each) not in staying
    ]
    places: dict[int, int] = {}
    nbytes = 0
    for parameter in parameters:
        if places.setdefault(parameter.data_ptr(), nbytes) == nbytes:
            nbytes += -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT
    available = available_memory_nbytes()
    if huge_pages() in (None, "never") or nbytes < min_nbytes or available is None or available < nbytes:
        return False
    try:
        memory = allocate(nbytes)
    except (KernelUnavailableError, MemoryError):
        return False
    for parameter in parameters:
        source = parameter.data
        place = places[source.data_ptr()]
        copy = memory[place : place + source.nbytes].view(source.dtype).view(source.shape)
        copy.copy_(source)
        parameter.data = copy
        let_go_of_file(source.data_ptr(), source.nbytes)
    return True
