"""Which device computes, and what memory it has: the processor, or a GPU that torch can use.

Knows torch and nothing of models or pages. Torch names AMD's GPUs "cuda" too.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pagoda.errors import DeviceLostError, DeviceUnavailableError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# bf16 in the matrix units, and what Triton compiles for.
LEAST_CAPABILITY = (8, 0)


def find_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a GPU if there is one that can be used.

    Raises DeviceUnavailableError if a GPU was asked for and none can be used.
    """
    import torch

    if name == "cpu":
        return torch.device("cpu")
    try:
        check_gpu()
    except DeviceUnavailableError as error:
        if name == "cuda":
            raise
        logger.info("Running on the processor: %s", error)
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def check_gpu() -> None:
    """Raise DeviceUnavailableError, which says why, if there is no GPU that can be used."""
    import torch

    if not torch.cuda.is_available():
        built = "was built without GPUs" if torch.version.cuda is None and torch.version.hip is None else "finds no GPU"
        raise DeviceUnavailableError(
            f"torch {torch.__version__} {built}; install its GPU build and the driver, or choose device=cpu."
        )
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is None and capability < LEAST_CAPABILITY:
        raise DeviceUnavailableError(
            f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]} and "
            f"{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} is needed; choose device=cpu."
        )
    if find_spec("triton") is None:
        raise DeviceUnavailableError(
            "Triton is not installed; get it with: pip install 'pagoda-kv[gpu]', or choose device=cpu."
        )


def room_on(device: torch.device, utilization: float) -> int:
    """Bytes that may still be taken of a GPU so that no more than `utilization` of its memory is used, by anybody."""
    import torch

    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return int(total * utilization) - (total - free)


def device_name(device: torch.device) -> str:
    """What users call it."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def made_on(device: torch.device) -> AbstractContextManager[object]:
    """While it lasts, tensors that are made anew lie on `device` unless they are said to lie elsewhere."""
    return nullcontext() if device.type == "cpu" else device


def check_alive(device: torch.device, cause: BaseException) -> None:
    """Raise DeviceLostError if nothing can be computed on a GPU any more, after `cause`."""
    import torch

    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except Exception as error:
        raise DeviceLostError(
            f"The GPU stopped in the middle of a step ({_first_line(error)}); restart Pagoda."
        ) from cause


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), repr(error))
