"""What is asked of the machine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pagoda.machine import let_go_of_file, processor_seconds

# Frees and takes 32 MiB a hundred times and prints the page faults it took.
FAULTS = """
import resource, sys
import torch
from pagoda.machine import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("no mallopt here")
count = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks = [torch.ones(8 << 20), torch.ones(8 << 20)]
before = count()
for _ in range(100):
    blocks[0] = torch.ones(8 << 20)
    blocks[1] = torch.ones(8 << 20)
print(count() - before)
"""


def page_faults(choice):
    result = subprocess.run([sys.executable, "-c", FAULTS, choice], capture_output=True, text=True, check=False)
    if "no mallopt" in result.stderr:
        pytest.skip("this C library has no mallopt")
    return int(result.stdout)


def test_freed_memory_is_kept():
    pages = 100 * 2 * (32 << 20) // 4096
    assert page_faults("keep") < pages // 5


# Products of 300 different numbers of rows, more than are kept; prints how much memory they leave behind, in MiB.
PRODUCTS = """
import sys
import torch
from pagoda.machine import bound_primitives, resident_memory_nbytes
if sys.argv[1] == "bound":
    bound_primitives()
weights = [torch.ones(256, 256 + 64 * index, dtype=torch.bfloat16) for index in range(2)]
multiply = lambda rows: [torch.ones(rows, len(each), dtype=torch.bfloat16) @ each for each in weights]
multiply(301)
before = resident_memory_nbytes()
for rows in range(1, 301):
    multiply(rows)
print((resident_memory_nbytes() - before) >> 20)
"""


def test_few_compiled_products_are_kept():
    # Other tests may have bound this process, which those it starts would inherit.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    bound, unbound = (
        int(subprocess.check_output([sys.executable, "-c", PRODUCTS, choice], env=environment))
        for choice in ("bound", "unbound")
    )
    assert bound <= max(unbound // 2, 20)


def is_in_this_process(memory: np.ndarray) -> bool:
    """Whether the system has given this process the pages of `memory`, all of them or none."""
    page = os.sysconf("SC_PAGESIZE")
    first, count = -(-memory.ctypes.data // page), memory.nbytes // page - 1
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(8 * first)
        present = np.frombuffer(file.read(8 * count), np.uint64) >> np.uint64(63)
    assert len(set(present)) == 1
    return bool(present[0])


def test_unchanged_pages_of_a_file_leave_the_process_and_no_others(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 1024)
    mapped = np.memmap(file, np.uint8, mode="c")
    total = int(mapped.sum())
    assert is_in_this_process(mapped)
    let_go_of_file(mapped.ctypes.data, mapped.nbytes)
    assert not is_in_this_process(mapped)
    assert int(mapped.sum()) == total

    mapped[70_000] = 7
    let_go_of_file(mapped.ctypes.data, mapped.nbytes)
    assert mapped[70_000] == 7

    own = np.full(1 << 18, 3, np.uint8)
    let_go_of_file(own.ctypes.data, own.nbytes)
    assert (own == 3).all()
    let_go_of_file(own.ctypes.data, 10)


def test_what_a_process_has_had_of_processors():
    before = processor_seconds(os.getpid())
    while processor_seconds(os.getpid()) - before < 0.05:
        pass
    assert 0 < before < processor_seconds(os.getpid()) < 100_000
    assert processor_seconds(2**31 - 1) == 0
