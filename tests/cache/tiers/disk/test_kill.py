"""Killed at any moment, a disk tier starts again with whole pages or none, within its limit."""

import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import page_records
from page_records import key, make_put
from pagoda.cache.tiers.base import TierSettings
from pagoda.cache.tiers.disk.tier import DiskTier

LIMIT_NBYTES = 1 << 17
NUM_KEYS = 400
# More of them by hand: PAGODA_KILLS=200.
NUM_KILLS = int(os.environ.get("PAGODA_KILLS", "20"))


def nbytes_of(number):
    """Of the pages of a record, always the same."""
    return (0, 60, 700, 4000, 9000)[number % 5]


def work(folder, seed):
    """Puts, reads and drops without end; says when it has begun."""
    tier, draw = DiskTier.open(TierSettings(folder, LIMIT_NBYTES)), Random(seed)
    print("begun", flush=True)  # noqa: T201
    while True:
        number = draw.randrange(NUM_KEYS)
        tier.put([make_put(number, nbytes_of(number))])
        tier.get([key(draw.randrange(NUM_KEYS)) for _ in range(4)])
        if draw.random() < 0.05:
            tier.drop([key(number)])
        if draw.random() < 0.01:
            tier.flush()
        if draw.random() < 0.002:
            tier.clear()
        if draw.random() < 0.02:
            tier.close()
            tier = DiskTier.open(TierSettings(folder, LIMIT_NBYTES))


def kill_once(folder, seed):
    environment = {**os.environ, "PYTHONPATH": str(Path(page_records.__file__).parent)}
    command = [sys.executable, __file__, folder, str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout.readline() == b"begun\n"
        time.sleep(Random(seed).random() * 0.3)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_killed_at_any_moment_it_starts_again(tmp_path):
    folder = str(tmp_path / "pages")
    num_found = 0
    for seed in range(NUM_KILLS):
        kill_once(folder, seed)
        assert sum(path.stat().st_size for path in Path(folder).iterdir()) <= LIMIT_NBYTES
        tier = DiskTier.open(TierSettings(folder, LIMIT_NBYTES))
        assert tier.stats().fault is None
        for number, record in enumerate(tier.get([key(number) for number in range(NUM_KEYS)])):
            assert record in (None, make_put(number, nbytes_of(number)).record)
            num_found += record is not None
        assert tier.stats().num_damaged == 0
        assert tier.put([make_put(NUM_KEYS)]) == [True]
        tier.close()
        assert sum(path.stat().st_size for path in Path(folder).iterdir()) <= LIMIT_NBYTES
    assert num_found > 10 * NUM_KILLS


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
