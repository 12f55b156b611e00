"""This machine, measured with numpy in a fraction of a second: what a floor is computed with where nobody gives rates.

Threads read memory that no cache holds; one product of matrices in fp32 stands for arithmetic, which processors with
units for products of 16 bits exceed. `pagoda doctor --measure` measures what the kernels reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pagoda import machine
from pagoda.analysis.machines import Machine

READ_NBYTES = 256 << 20
SIDE = 1024
REPEATS = 16


def this_machine() -> Machine:
    """Its free memory, and how fast it reads and multiplies now."""
    return Machine(
        name=machine.cpu_name() or "this machine",
        memory_nbytes=machine.available_memory_nbytes(),
        bandwidth=read_bandwidth(),
        flops={"float32": product_rate()},
        source="measured just now: free memory, reading with all cores, products in fp32",
    )


def read_bandwidth() -> float:
    """Bytes a second that all cores read together."""
    num_threads = machine.num_cores()
    parts = np.array_split(np.ones(READ_NBYTES // 8, dtype=np.int64), num_threads)
    with ThreadPoolExecutor(num_threads) as threads:
        return READ_NBYTES / _best_seconds(lambda: list(threads.map(np.bitwise_or.reduce, parts)))


def product_rate() -> float:
    """Operations a second in a product of matrices."""
    side = np.ones((SIDE, SIDE), dtype=np.float32)
    return 2 * SIDE**3 / _best_seconds(lambda: side @ side)


def _best_seconds(run: Callable[[], object]) -> float:
    """The least of some times, after one that does not count: a limit is looked for, and memory is slow at moments."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])
