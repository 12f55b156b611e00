"""A disk tier, restarts, readers and faults against a dictionary: what comes back is what was put last, or nothing."""

import errno
import os
import shutil
import tempfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from cache_files import mutate
from page_records import key, make_put
from pagoda.cache.tiers.base import TierSettings
from pagoda.cache.tiers.disk.tier import LEAST_LIMIT_NBYTES, DiskTier

numbers = st.integers(0, 60)
sizes = st.sampled_from([0, 100, 2000, 9000])
CALLS = ("pwrite", "preadv", "ftruncate", "unlink", "open", "fdatasync", "posix_fadvise", "close")


class DiskMachine(RuleBasedStateMachine):
    """`self.puts` has what was put under each key last, nothing of what was dropped. Where damage to a file can have
    undone a drop, all that was ever put will do (`self.past`)."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.puts = {}
        self.past = defaultdict(list)
        self.was_damaged = False
        self.tier = self.open()

    def open(self):
        return DiskTier.open(TierSettings(self.folder, LEAST_LIMIT_NBYTES))

    def teardown(self):
        self.tier.close()
        shutil.rmtree(self.folder)

    def remember(self, number, record):
        self.puts[number] = record
        self.past[number].append(record)

    def check(self, asked, records):
        for number, record in zip(asked, records, strict=True):
            good = self.past[number] if self.was_damaged else [self.puts.get(number)]
            assert record is None or record in good

    @rule(number=numbers, nbytes=sizes)
    def put(self, number, nbytes):
        put = make_put(number, nbytes)
        was_held = self.tier.contains([put.key]) == [True]
        if self.tier.put([put]) == [True] and not was_held:
            self.remember(number, put.record)

    @rule(asked=st.lists(numbers, max_size=8))
    def get(self, asked):
        self.check(asked, self.tier.get([key(each) for each in asked]))

    @rule(number=numbers)
    def drop(self, number):
        self.tier.drop([key(number)])
        assert self.tier.contains([key(number)]) == [False]
        self.puts.pop(number, None)

    @rule()
    def clear(self):
        self.tier.clear()
        self.puts.clear()

    @rule(is_killed=st.booleans())
    def restart(self, is_killed):
        before = [key(each) for each in range(61) if self.tier.contains([key(each)]) == [True]]
        if is_killed:
            self.tier._log.close()
            self.tier._folder.unlock()
        else:
            self.tier.close()
        self.tier = self.open()
        assert all(self.tier.contains(before))

    @rule(asked=st.lists(numbers, max_size=8))
    def read_beside(self, asked):
        reader = self.open()
        assert reader.is_read_only
        assert reader.contains([key(each) for each in asked]) == self.tier.contains([key(each) for each in asked])
        self.check(asked, reader.get([key(each) for each in asked]))
        reader.close()

    @rule(number=numbers, nbytes=sizes, call=st.sampled_from(CALLS), num_good=st.integers(0, 4))
    def fail(self, number, nbytes, call, num_good):
        """The next calls are good, then one fails: the put is whole, or there is none."""
        put, real, left = make_put(number, nbytes), getattr(os, call), [None] * num_good

        def failing(*arguments, **options):
            if left:
                left.pop()
                return real(*arguments, **options)
            if call == "pwrite":
                real(arguments[0], arguments[1][:7], arguments[2])
            if call == "close":
                real(*arguments)
            raise OSError(errno.EIO, "failed")

        was_held = self.tier.contains([put.key]) == [True]
        with pytest.MonkeyPatch.context() as monkeypatch, suppress(OSError):
            monkeypatch.setattr(os, call, failing)
            if not was_held:
                self.tier.put([put])
            self.tier.get([key(each) for each in range(5)])
        if not was_held and self.tier.contains([put.key]) == [True]:
            self.remember(number, put.record)

    @rule(draw=st.randoms(use_true_random=False))
    def damage(self, draw):
        """While nobody has it open, a file changes; what was dropped may be there again."""
        self.tier.close()
        self.was_damaged = True
        files = sorted(Path(self.folder).glob("segment-*"))
        if files:
            file = draw.choice(files)
            data = mutate(file.read_bytes(), draw)
            file.unlink()
            file.write_bytes(data[: LEAST_LIMIT_NBYTES // 16])
        self.tier = self.open()

    @invariant()
    def limit_holds(self):
        nbytes = sum(path.stat().st_size for path in Path(self.folder).iterdir())
        assert nbytes <= LEAST_LIMIT_NBYTES
        assert self.tier.stats().nbytes <= LEAST_LIMIT_NBYTES


def test_against_a_dictionary():
    run_state_machine_as_test(DiskMachine, settings=settings(max_examples=25, stateful_step_count=40, deadline=None))
