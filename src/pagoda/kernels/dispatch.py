"""Chooses the kernel backend, and says why."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pagoda.config import Environment
from pagoda.errors import ConfigError, KernelUnavailableError
from pagoda.kernels.base import Kernels
from pagoda.registry import lookup, names

logger = logging.getLogger(__name__)

AUTO, BEST, PLAIN, BEST_OF_GPUS = "auto", "native", "reference", "triton"


@dataclass(frozen=True)
class Backend:
    """The backend in use; `missing` is why the best one cannot run here, if this is in its place."""

    kernels: Kernels
    missing: KernelUnavailableError | None = None


def find_backend(environment: Environment, deterministic: bool = False, device_type: str = "cpu") -> Backend:
    """The backend that PAGODA_KERNELS forces, else the best one of the device, else the reference.

    With `deterministic` it is never the reference: torch, which that calls, orders sums as it sees fit.
    Raises KernelUnavailableError if a backend that is forced cannot run here, or ConfigError.
    """
    check_name(environment.kernels)
    name = environment.kernels
    if name == AUTO:
        name = BEST if device_type == "cpu" else BEST_OF_GPUS
    elif device_type != "cpu" and name == BEST:
        raise ConfigError(f"PAGODA_KERNELS is {name!r}, which is for processors; leave it out, or choose device=cpu.")
    try:
        return Backend(_make(name, environment, deterministic))
    except KernelUnavailableError as error:
        if name != BEST or environment.kernels != AUTO or environment.kernel_isa is not None or deterministic:
            raise
        return Backend(_make(PLAIN, environment, deterministic), error)


def choose_kernels(environment: Environment, deterministic: bool = False, device_type: str = "cpu") -> Kernels:
    """`find_backend`; the reason is logged."""
    backend = find_backend(environment, deterministic, device_type)
    if backend.missing is not None:
        logger.warning("Running on the slow reference kernels: %s", backend.missing)
    else:
        logger.info("Kernels: %s", backend.kernels.name)
    return backend.kernels


def check_name(name: str) -> None:
    """Raise ConfigError unless PAGODA_KERNELS may be `name`."""
    if name not in (AUTO, *names("kernels")):
        raise ConfigError(f"PAGODA_KERNELS is {name!r}; choose auto or one of: {', '.join(names('kernels'))}.")


def _make(name: str, environment: Environment, deterministic: bool) -> Kernels:
    kernels: Kernels = lookup("kernels", name).of(environment, deterministic)
    return kernels
