"""What this machine is: processor, cores, memory, huge pages.

Reads Linux's /proc and /sys; what a system does not say is None. Knows nothing of models, kernels or torch.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")
PAGE_MAP = Path("/proc/self/pagemap")
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


# mallopt(3): when glibc gives memory back, how much it takes at a time, what it maps by itself.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT_NBYTES = 1 << 30
TAKEN_NBYTES = 64 << 20
KEPT_PRIMITIVES = 128
# madvise(2)
MADV_DONTNEED = 4
# Entries of /proc/self/pagemap: their highest bits say whether a page is in memory, swapped, and of a file.
PAGE_ENTRY_NBYTES = 8
STATE_SHIFT, OF_FILE, ABSENT = 61, 0b101, 0b000


def keep_freed_memory() -> bool:
    """Let this process keep freed memory, up to 1 GiB, instead of giving it back; False where the C library cannot.

    Activations of a long prompt are tens of megabytes each. Given back after every layer they are faulted in again page
    by page, which took a fifth of the time of a prefill (benchmarks/LOG.md).
    """
    library = ctypes.CDLL(None)
    try:
        mallopt = library.mallopt
    except AttributeError:
        return False
    settings = ((M_TRIM_THRESHOLD, KEPT_NBYTES), (M_TOP_PAD, TAKEN_NBYTES), (M_MMAP_THRESHOLD, KEPT_NBYTES))
    return all(mallopt(option, value) for option, value in settings)


def bound_primitives() -> None:
    """Let torch and oneDNN keep few of the products they compile, unless the user says how many; before the first.

    One is compiled for every number of rows, half a megabyte each, and 1,024 are kept: prompts of all lengths fill that
    within minutes. To compile one again takes about a millisecond (benchmarks/LOG.md).
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, str(KEPT_PRIMITIVES))


def let_go_of_file(address: int, nbytes: int) -> None:
    """Take whole pages of a range out of this process, if all are of a mapped file and as they are there.

    The system keeps them in its cache, so that who maps the file next does not wait for the disk.
    """
    page = os.sysconf("SC_PAGESIZE")
    first, last = -(-address // page), (address + nbytes) // page
    if first >= last:
        return
    try:
        with PAGE_MAP.open("rb") as file:
            file.seek(first * PAGE_ENTRY_NBYTES)
            entries = memoryview(file.read((last - first) * PAGE_ENTRY_NBYTES)).cast("Q")
        madvise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, ValueError):
        return
    if {entry >> STATE_SHIFT for entry in entries} <= {OF_FILE, ABSENT}:
        madvise(ctypes.c_void_p(first * page), ctypes.c_size_t((last - first) * page), MADV_DONTNEED)


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


def resident_memory_nbytes() -> int:
    """Memory of this process that is not swapped out; 0 where the system does not say."""
    pages = _read(Path("/proc/self/statm")).split()
    return int(pages[1]) * os.sysconf("SC_PAGESIZE") if pages else 0


def processor_seconds(process_id: int) -> float:
    """What a process has had of processors; 0 where the system does not say, or it has ended."""
    fields = _read(Path(f"/proc/{process_id}/stat")).rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


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
