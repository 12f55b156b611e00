"""Where the page pools of an engine lie, what room there is for them, and the pools as a memory plan divides it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pagoda.cache.pool import PagePool
from pagoda.cache.transfers.base import Transfers
from pagoda.cache.transfers.host import HostTransfers
from pagoda.config import EngineConfig
from pagoda.devices import device_name, room_on
from pagoda.errors import ConfigError, DeviceUnavailableError
from pagoda.formats.page import PageGeometry
from pagoda.formats.state import StateGeometry
from pagoda.machine import available_memory_nbytes
from pagoda.models.model import Model
from pagoda.planning.facts import MachineFacts
from pagoda.planning.memory import MemoryPlan

# Of a GPU, what torch, its libraries, recorded steps and slices of decoded weights keep besides weights, pages and the
# numbers of a step.
KEPT_NBYTES = 1 << 30
# Numbers of a step for each token: some times as many as its widest layer makes.
WIDTHS_OF_A_STEP = 6
# Copies of logits that sampling makes.
COPIES_OF_LOGITS = 4


def machine_facts(model: Model, config: EngineConfig) -> MachineFacts:
    """Of the memory that the pages of `model` would lie in. Raises DeviceUnavailableError if a GPU has no room."""
    facts = MachineFacts.measured()
    if model.device.type == "cpu" or config.kv_cache_memory_bytes is not None:
        return facts
    nbytes = room_on(model.device, config.gpu_memory_utilization) - KEPT_NBYTES - _step_nbytes(model, config)
    if nbytes <= 0:
        raise DeviceUnavailableError(
            f"{device_name(model.device)} has {-nbytes} bytes too few for pages beside the weights; raise "
            "gpu_memory_utilization, lower max_num_batched_tokens or max_num_seqs, or end what else runs on it."
        )
    return MachineFacts(facts.available_nbytes, nbytes)


def make_pools(memory: MemoryPlan, poison: bool, device: torch.device, host_nbytes: int = 0) -> list[PagePool]:
    """A pool for every group of layers that attend, then one for recurrent states.

    Of pages on a GPU, copies in host memory take `host_nbytes`. Raises ConfigError if there is no room for either.
    """
    wanted: list[tuple[PageGeometry | StateGeometry, int, bool]] = [
        (geometry, num_pages, memory.summary_nbytes(geometry) > 0) for geometry, num_pages in memory.pools
    ]
    if memory.states is not None:
        wanted.append((memory.states.geometry, memory.states.num_slots, False))
    transfers = transfers_on(device, host_nbytes)
    try:
        return [PagePool(*each[:2], poison, device, each[2], transfers) for each in wanted]
    except (OSError, OverflowError, ValueError, torch.OutOfMemoryError) as error:
        where = "This machine" if device.type == "cpu" else device_name(device)
        raise ConfigError(
            f"{where} has no room for page pools of {memory.nbytes} bytes ({error}); lower kv_cache_memory_bytes."
        ) from error


def transfers_on(device: torch.device, host_nbytes: int) -> Callable[[torch.Tensor], Transfers]:
    """What copies pages on `device` out and in; memory for `host_nbytes` of copies is pinned now, if that is needed.

    Raises ConfigError if it cannot be.
    """
    if device.type == "cpu":
        return HostTransfers
    from pagoda.cache.transfers.cuda import CudaPinning, cuda_streams
    from pagoda.cache.transfers.device import DeviceTransfers
    from pagoda.cache.transfers.pinned import PinnedMemory, slab_nbytes

    available = available_memory_nbytes()
    if available is not None and host_nbytes > available:
        raise ConfigError(f"kv_host_bytes is {host_nbytes}, and this machine has {available} bytes to spare; lower it.")
    memory = PinnedMemory(CudaPinning(device), slab_nbytes(host_nbytes))
    try:
        memory.reserve(host_nbytes)
    except OSError as error:
        raise ConfigError(f"kv_host_bytes is {host_nbytes}, which cannot be pinned: {error}; lower it.") from error
    streams = cuda_streams(device)
    return lambda pages: DeviceTransfers(pages, streams, memory)


def obstacle_on_gpu(config: EngineConfig) -> str | None:
    """What is asked for that a GPU cannot do, and what to do about it; None if there is nothing."""
    if config.environment.kernels == "native":
        return "PAGODA_KERNELS is 'native', which is for processors; leave it out."
    return None


def check_device(model: Model, config: EngineConfig) -> None:
    """Raise ConfigError for what cannot be done with pages on a GPU."""
    obstacle = obstacle_on_gpu(config) if model.device.type != "cpu" else None
    if obstacle is not None:
        raise ConfigError(obstacle)


def _step_nbytes(model: Model, config: EngineConfig) -> int:
    widest = max((each.out_features for each in model.network.modules() if _is_layer(each, model)), default=0)
    numbers = config.max_num_batched_tokens * widest * model.dtype.itemsize * WIDTHS_OF_A_STEP
    return numbers + config.max_num_seqs * model.vocab_size * torch.float32.itemsize * COPIES_OF_LOGITS


def _is_layer(module: torch.nn.Module, model: Model) -> bool:
    return isinstance(module, torch.nn.Linear) and module.out_features != model.vocab_size
