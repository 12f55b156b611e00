"""A tier in parts: nobody takes what another tenant has reserved, and everything is found."""

from dataclasses import replace

import pytest

from pagoda.cache.tiers.base import Put, TierSettings
from pagoda.cache.tiers.host import HostTier
from pagoda.cache.tiers.partitioned import PartitionedTier
from pagoda.cache.tiers.record import Draft, Kind, Label

LIMIT_NBYTES = 10_000
OWN, OTHER = b"own     ", b"other   "


def put_of(tenant, number):
    name = number.to_bytes(16, "little")
    label = Label(bytes(16), bytes(16), tenant, Kind.PAGE, 0, name, bytes(16), 4, bytes(16))
    draft = Draft(label, 500)
    draft.body[:] = number % 256
    return Put(label.key, draft.seal(0))


@pytest.fixture
def tier():
    settings = TierSettings(limit_nbytes=LIMIT_NBYTES)
    return PartitionedTier({OWN: HostTier.open(replace(settings, limit_nbytes=5_000))}, HostTier.open(settings))


def test_a_flood_of_others_leaves_what_is_reserved(tier):
    mine = [put_of(OWN, number) for number in range(3)]
    assert tier.put(mine) == [True] * 3
    flood = [put_of(OTHER, 100 + number) for number in range(50)]
    assert all(tier.put(flood))
    assert [bytes(record) for record in tier.get([each.key for each in mine])] == [bytes(each.record) for each in mine]
    assert not all(tier.contains([each.key for each in flood]))


def test_a_flood_of_its_own_stays_in_its_part(tier):
    others = [put_of(OTHER, number) for number in range(5)]
    tier.put(others)
    tier.put([put_of(OWN, 100 + number) for number in range(50)])
    assert all(tier.contains([each.key for each in others]))
    assert tier.stats().nbytes <= tier.stats().limit_nbytes == 15_000


def test_both_are_put_found_and_forgotten_in_one_call(tier):
    mixed = [put_of((OWN, OTHER)[number % 2], number) for number in range(6)]
    assert tier.put(mixed) == [True] * 6
    keys = [each.key for each in mixed]
    assert tier.num_leading([*keys, b"no"]) == 6
    assert [bytes(record) for record in tier.get(keys)] == [bytes(each.record) for each in mixed]
    tier.drop(keys[:2])
    assert tier.contains(keys) == [False] * 2 + [True] * 4
    tier.clear()
    assert tier.stats().num_records == 0
