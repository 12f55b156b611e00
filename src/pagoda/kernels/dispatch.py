"""Chooses the kernel backend, and says why."""

from __future__ import annotations

import logging

from pagoda.config import Environment
from pagoda.errors import ConfigError, KernelUnavailableError
from pagoda.kernels.base import Kernels
from pagoda.registry import lookup, names

logger = logging.getLogger(__name__)


def choose_kernels(environment: Environment, deterministic: bool = False) -> Kernels:
    """The backend that PAGODA_KERNELS forces, else the native one, else the reference; the reason is logged.

    With `deterministic` there is the native one alone: torch, which the reference calls, orders sums as it sees fit.
    """
    if environment.kernels == "reference":
        if deterministic:
            raise ConfigError("deterministic needs the native kernels; leave PAGODA_KERNELS=reference out.")
        return _reference()
    if environment.kernels not in ("auto", "native"):
        raise ConfigError(
            f"PAGODA_KERNELS is {environment.kernels!r}; choose auto or one of: {', '.join(names('kernels'))}."
        )
    try:
        kernels: Kernels = lookup("kernels", "native")(isa=environment.kernel_isa, deterministic=deterministic)
    except KernelUnavailableError as error:
        if environment.kernels == "native" or environment.kernel_isa is not None or deterministic:
            raise
        logger.warning("Running on the slow reference kernels: %s", error)
        return _reference()
    logger.info("Kernels: %s", kernels.name)
    return kernels


def _reference() -> Kernels:
    kernels: Kernels = lookup("kernels", "reference")()
    return kernels
