"""The disk tier beside plain files of the same bytes: appended, read from cold and warm files, and opened again.

    python benchmarks/tier_disk.py
    python benchmarks/tier_disk.py --directory /mnt/nvme --page-kib 16 384 --mib 512

Every figure is a median of runs in turn. A cold file is one whose pages the kernel was asked to forget.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from pagoda.cache.tiers.base import Put, TierSettings
from pagoda.cache.tiers.disk.tier import DiskTier
from pagoda.cache.tiers.record import Draft, Kind, Label

BATCH = 32  # pages that are put and asked for at once


def make_puts(num_records: int, page_nbytes: int) -> list[Put]:
    noise = np.random.default_rng(0).integers(0, 256, page_nbytes, np.uint8)
    puts = []
    for number in range(num_records):
        name = number.to_bytes(16, "big")
        draft = Draft(Label(bytes(16), bytes(16), bytes(8), Kind.PAGE, 0, name, name, 32, bytes(128)), page_nbytes)
        draft.body[:] = noise
        puts.append(Put(draft.label.key, draft.seal(0)))
    return puts


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def forget(files: list[Path]) -> None:
    """Have the kernel read them from the disk next time."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def write_plain(file: Path, puts: list[Put]) -> None:
    with file.open("wb", buffering=0) as target:
        for put in puts:
            target.write(put.record)


def read_plain(file: Path, puts: list[Put]) -> None:
    """Each record into memory of its own, a batch of which is held at a time, as the tier's are."""
    with file.open("rb", buffering=0) as source:
        for start in range(0, len(puts), BATCH):
            held = [np.empty(len(put.record), np.uint8) for put in puts[start : start + BATCH]]
            for each in held:
                source.readinto(each)


def get_all(tier: DiskTier, puts: list[Put]) -> None:
    for start in range(0, len(puts), BATCH):
        found = tier.get([put.key for put in puts[start : start + BATCH]])
        assert None not in found


def put_all(tier: DiskTier, puts: list[Put]) -> None:
    for start in range(0, len(puts), BATCH):
        assert all(tier.put(puts[start : start + BATCH]))


def run_once(directory: Path, puts: list[Put], times: dict[str, list[float]]) -> None:
    settings, plain = TierSettings(str(directory / "pages"), None), directory / "plain"
    times["plain write"].append(seconds(lambda: write_plain(plain, puts)))
    tier = DiskTier.open(settings)
    times["tier put"].append(seconds(lambda: put_all(tier, puts)))
    tier.close()
    opened: list[DiskTier] = []
    times["open"].append(seconds(lambda: opened.append(DiskTier.open(settings))))
    files = [plain, *(directory / "pages").glob("segment-*")]
    forget(files)
    times["plain read, cold"].append(seconds(lambda: read_plain(plain, puts)))
    times["tier get, cold"].append(seconds(lambda: get_all(opened[0], puts)))
    times["plain read, warm"].append(seconds(lambda: read_plain(plain, puts)))
    times["tier get, warm"].append(seconds(lambda: get_all(opened[0], puts)))
    opened[0].close()
    plain.unlink()
    shutil.rmtree(directory / "pages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--directory", type=Path, help="on the disk to measure (default: the usual for temporary files)"
    )
    parser.add_argument("--page-kib", type=int, nargs="+", default=[16, 384], help="sizes of pages")
    parser.add_argument("--mib", type=int, default=256, help="bytes of them all")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    names = (
        "plain write",
        "tier put",
        "open",
        "plain read, cold",
        "tier get, cold",
        "plain read, warm",
        "tier get, warm",
    )
    for page_kib in arguments.page_kib:
        puts = make_puts((arguments.mib << 10) // page_kib, page_kib << 10)
        nbytes, times = sum(len(put.record) for put in puts), {name: [] for name in names}
        for _ in range(arguments.runs):
            with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
                run_once(Path(directory), puts, times)
        print(f"{len(puts):,} pages of {page_kib} KiB")
        for name, values in times.items():
            print(f"  {name}: {median(values) * 1e3:.1f} ms, {nbytes / median(values) / 1e6:,.0f} MB/s")


if __name__ == "__main__":
    main()
