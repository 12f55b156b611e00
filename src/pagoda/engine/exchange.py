"""Numbers between the host and a device that answers later: neither way waits for what the device was told before.

They go through pinned memory of their own, which torch gives to nobody else before the device has been there. Knows
neither models nor sequences.
"""

from __future__ import annotations

import torch

from pagoda.cache.transfers.cuda import ComputeStream


def sent(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`numbers` of the host on the device, as they are now."""
    if device.type == "cpu":
        return numbers
    return numbers.pin_memory().to(device, non_blocking=True)


class Answer:
    """`numbers` of a device on their way to the host, once it has come to them."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._numbers = numbers
        self._event = None
        if not numbers.is_cpu:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = ComputeStream(numbers.device).record()

    def read(self) -> list[int]:
        """Wait for them."""
        if self._event is not None:
            self._event.wait()
        numbers: list[int] = self._numbers.tolist()
        return numbers
