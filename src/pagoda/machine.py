"""What this machine is: processor, cores, memory, huge pages.

Reads Linux's /proc and /sys; what a system does not say is None. Knows nothing of models, kernels or torch.
"""

from __future__ import annotations

import os
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# What the kernels are compiled for, in the names that /proc/cpuinfo uses.
INTERESTING_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
)


def cpu_name() -> str | None:
    return _cpu_field("model name")


def cpu_features() -> tuple[str, ...]:
    """Those of `INTERESTING_FEATURES` that the processor has."""
    flags = (_cpu_field("flags") or "").split()
    return tuple(feature for feature in INTERESTING_FEATURES if feature in flags)


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def memory_nbytes() -> int | None:
    return _memory_field("MemTotal")


def available_memory_nbytes() -> int | None:
    """What can be allocated without swapping, caches that can be dropped included."""
    return _memory_field("MemAvailable")


def huge_pages() -> str | None:
    """The system's setting for transparent huge pages: always, madvise or never."""
    text = _read(HUGE_PAGES)
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else None


def _cpu_field(name: str) -> str | None:
    return next((value for key, value in _fields(CPU_INFO) if key == name), None)


def _memory_field(name: str) -> int | None:
    return next((int(value.split()[0]) * 1024 for key, value in _fields(MEMORY_INFO) if key == name), None)


def _fields(file: Path) -> list[tuple[str, str]]:
    lines = (line.partition(":") for line in _read(file).splitlines())
    return [(key.strip(), value.strip()) for key, _, value in lines]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
