"""Chooses the kernel backend, and says why."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pagoda.config import Environment
from pagoda.errors import ConfigError, KernelUnavailableError
from pagoda.kernels.base import Kernels
from pagoda.registry import lookup, names

logger = logging.getLogger(__name__)

AUTO, BEST, PLAIN = "auto", "native", "reference"


@dataclass(frozen=True)
class Backend:
    """The backend in use; `missing` is why the best one cannot run here, if this is in its place."""

    kernels: Kernels
    missing: KernelUnavailableError | None = None


def find_backend(environment: Environment, deterministic: bool = False) -> Backend:
    """The backend that PAGODA_KERNELS forces, else the native one, else the reference.

    With `deterministic` there is the native one alone: torch, which the reference calls, orders sums as it sees fit.
    Raises KernelUnavailableError if a backend that is forced cannot run here, or ConfigError.
    """
    check_name(environment.kernels)
    try:
        return Backend(_make(BEST if environment.kernels == AUTO else environment.kernels, environment, deterministic))
    except KernelUnavailableError as error:
        if environment.kernels != AUTO or environment.kernel_isa is not None or deterministic:
            raise
        return Backend(_make(PLAIN, environment, deterministic), error)


def choose_kernels(environment: Environment, deterministic: bool = False) -> Kernels:
    """`find_backend`; the reason is logged."""
    backend = find_backend(environment, deterministic)
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
