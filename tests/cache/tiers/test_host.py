"""A host tier hands out what it was given, and counts what Python takes for it."""

import pytest

from page_records import OVERHEAD_NBYTES as RECORD_OVERHEAD_NBYTES
from page_records import key, make_put
from pagoda.cache.tiers.base import TierSettings
from pagoda.cache.tiers.host import OVERHEAD_NBYTES, HostTier
from pagoda.errors import ConfigError

# What a record of 500 bytes of pages takes.
EACH_NBYTES = 500 + RECORD_OVERHEAD_NBYTES + OVERHEAD_NBYTES


def make_tier(limit_nbytes):
    return HostTier.open(TierSettings(limit_nbytes=limit_nbytes))


def test_nothing_is_copied():
    tier, put = make_tier(None), make_put(1)
    tier.put([put])
    assert tier.get([put.key])[0] is put.record


def test_the_least_recently_used_goes_first():
    tier = make_tier(3 * EACH_NBYTES)
    tier.put([make_put(number) for number in range(3)])
    tier.get([key(0)])
    tier.put([make_put(1)])
    tier.put([make_put(3)])
    assert tier.contains([key(number) for number in range(4)]) == [True, True, False, True]
    assert tier.stats().nbytes == 3 * EACH_NBYTES
    assert tier.stats().num_dropped == 1


def test_what_is_larger_than_the_limit_drives_nothing_out():
    tier = make_tier(EACH_NBYTES)
    assert tier.put([make_put(1), make_put(2, 501)]) == [True, False]
    assert tier.contains([key(1), key(2)]) == [True, False]


def test_what_is_dropped_makes_room():
    tier = make_tier(2 * EACH_NBYTES)
    tier.put([make_put(1), make_put(2)])
    tier.drop([key(1)])
    assert tier.stats().nbytes == EACH_NBYTES
    tier.put([make_put(3)])
    assert tier.contains([key(2), key(3)]) == [True, True]


@pytest.mark.parametrize("limit_nbytes", [0, -1])
def test_a_limit_that_holds_nothing_is_refused(limit_nbytes):
    with pytest.raises(ConfigError, match="leave it out"):
        make_tier(limit_nbytes)


def test_it_ends_with_the_process():
    """So pages come to it when they leave the pool, and not as soon as they are full."""
    assert not make_tier(None).persists
