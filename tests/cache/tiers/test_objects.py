"""Records as objects: the logic over a store in memory, the protocol over a server that speaks that of S3."""

from urllib.parse import urlsplit

import pytest

from page_records import make_put
from pagoda.cache.tiers.base import TierSettings
from pagoda.cache.tiers.guarded import GuardedTier, Limits
from pagoda.cache.tiers.objects import ObjectTier
from pagoda.cache.tiers.record import read_record
from pagoda.errors import ConfigError, TierError
from shared_stores import silent_server


def opened(url, **settings):
    return ObjectTier.open(TierSettings(where=url, timeout_seconds=settings.pop("timeout_seconds", 30), **settings))


@pytest.fixture(params=["memory", "file", "s3"])
def url(request, tmp_path):
    """An empty store of each kind."""
    if request.param == "s3":
        return request.getfixturevalue("bucket_url")
    return {"memory": "memory://", "file": f"file://{tmp_path}/some%20folder"}[request.param]


def test_records_come_back_as_they_were_put(url):
    tier = opened(url)
    records = [make_put(number, 1000 + 70_000 * number) for number in range(5)]
    assert tier.put(records) == [True] * 5
    found = tier.get([make_put(9).key, *(record.key for record in records)])
    assert found == [None, *(record.record for record in records)]
    assert [read_record(record).header.key for record in found[1:]] == [record.key for record in records]
    assert tier.contains([make_put(9).key, make_put(1).key]) == [False, True]
    tier.drop([make_put(1).key, make_put(9).key])
    assert tier.contains([make_put(9).key, make_put(1).key]) == [False, False]
    assert tier.stats().num_records == 4
    tier.close()


@pytest.mark.parametrize("gap", [0, 1, 7, 8, 23, 24, 30])
def test_prefixes_end_at_the_first_gap(gap):
    tier = opened("memory://")
    records = [make_put(number) for number in range(30)]
    tier.put(records[:gap] + records[gap + 1 :])
    assert tier.num_leading([record.key for record in records]) == gap
    assert tier.num_leading([]) == 0
    tier.close()


def test_what_is_there_already_is_kept_as_it_is(url):
    first, second = opened(url), opened(url)
    assert first.put([make_put(1, created_ms=1)]) == [True]
    second._store = first._store  # memory is each its own
    assert second.put([make_put(1, created_ms=2)]) == [True]
    assert second.get([make_put(1).key]) == [make_put(1, created_ms=1).record]
    assert second.stats().written_nbytes == 0
    second.clear()  # it wrote nothing
    assert first.contains([make_put(1).key]) == [True]
    first.clear()
    assert first.contains([make_put(1).key]) == [False]
    first.close()
    second.close()


def test_its_own_records_stay_within_its_limit():
    limit_nbytes = 4 * make_put(0, 2500).record.nbytes
    tier = opened("memory://", limit_nbytes=limit_nbytes)
    for number in range(5):
        assert tier.put([make_put(number, 2500)]) == [True]
    assert tier.put([make_put(9, 20_000)]) == [False]
    assert tier.contains([make_put(number).key for number in range(5)]) == [False, True, True, True, True]
    stats = tier.stats()
    assert (stats.nbytes, stats.limit_nbytes, stats.num_dropped, stats.num_refused) == (limit_nbytes,) * 2 + (1, 1)
    tier.close()


def test_what_others_drop_is_a_miss():
    tier = opened("memory://")
    tier.put([make_put(1)])
    other = opened("memory://")
    other._store = tier._store
    other.drop([make_put(1).key])
    assert tier.get([make_put(1).key]) == [None]
    assert (tier.stats().num_records, tier.stats().num_dropped) == (0, 1)
    tier.close()
    other.close()


@pytest.mark.parametrize("url", ["s3://", "http://host/bucket", "s3://bucket?colour=blue"])
def test_an_address_that_cannot_be_used_is_refused(url):
    with pytest.raises(ConfigError):
        opened(url)


def test_a_bucket_that_is_not_there_is_named(bucket_url):
    with pytest.raises(TierError, match="s3://none/") as caught:
        opened(f"s3://none/?{urlsplit(bucket_url).query}&secret_access_key=s3cret")
    assert "s3cret" not in str(caught.value)


def test_a_store_that_never_answers_is_off(bucket_url):
    with silent_server() as port:
        settings = TierSettings(where=f"s3://bucket?endpoint=http://127.0.0.1:{port}", timeout_seconds=0.05)
        guard = GuardedTier("remote", lambda: ObjectTier.open(settings), Limits())
        assert "s3://bucket failed" in guard.stats().fault
        assert guard.get([make_put(1).key]) == [None]
        guard.close()
