"""Records in a store by the Redis protocol, against a server of the tests' own."""

import multiprocessing
from urllib.parse import urlsplit

import pytest
import redis

from page_records import OVERHEAD_NBYTES, make_put
from pagoda.cache.tiers.base import TierSettings
from pagoda.cache.tiers.guarded import GuardedTier, Limits
from pagoda.cache.tiers.parts import MOST_WASTE
from pagoda.cache.tiers.record import read_record
from pagoda.cache.tiers.redis import PREFIX, SECOND, RedisTier
from pagoda.errors import ConfigError, TierError
from shared_stores import cutting_proxy, free_port, redis_server, silent_server

MIB = 1 << 20
CUT = MIB + 156  # a record that is kept in two parts


def put(number, nbytes=1000):
    """A record of `nbytes` altogether."""
    return make_put(number, nbytes - OVERHEAD_NBYTES)


def opened(url, **settings):
    return RedisTier.open(TierSettings(where=url, timeout_seconds=settings.pop("timeout_seconds", 30), **settings))


@pytest.fixture
def tier(redis_url):
    tier = opened(redis_url)
    yield tier
    tier.close()


@pytest.fixture
def client(redis_url):
    with redis.from_url(redis_url) as client:
        yield client


@pytest.mark.parametrize("nbytes", [500, 64 << 10, MIB - 64, CUT])
def test_records_come_back_as_they_were_put(tier, nbytes):
    records = [put(number, nbytes) for number in range(5)]
    assert tier.put(records) == [True] * 5
    found = tier.get([put(9).key, *(record.key for record in records)])
    assert found == [None, *(bytes(record.record) for record in records)]
    assert [read_record(record).header.key for record in found[1:]] == [record.key for record in records]


def test_records_of_any_sizes_come_in_one_call(tier):
    records = [put(number, nbytes) for number, nbytes in enumerate([500, CUT, 900, 3 * MIB, 64 << 10, CUT, 500])]
    assert all(tier.put(records))
    assert tier.get([record.key for record in records]) == [bytes(record.record) for record in records]


def test_prefixes_end_at_the_first_gap(tier):
    records = [put(number) for number in range(6)]
    tier.put(records[:2] + records[3:5])
    keys = [record.key for record in records]
    assert tier.contains(keys) == [True, True, False, True, True, False]
    assert tier.num_leading(keys) == 2
    assert (tier.num_leading(keys[2:]), tier.num_leading([]), tier.contains([])) == (0, 0, [])


def test_a_server_that_forgot_the_script_is_told_again(tier, client):
    tier.put([put(1)])
    assert tier.num_leading([put(1).key]) == 1
    client.script_flush()
    assert tier.num_leading([put(1).key]) == 1


@pytest.mark.parametrize("nbytes", [1 << 16, (1 << 16) + 156, MIB, MIB + 156, MIB * 11 // 10])
def test_little_memory_is_wasted(tier, client, nbytes):
    tier.put([put(1, nbytes)])
    taken = sum(client.memory_usage(key) for key in client.keys(PREFIX + b"*"))
    assert taken - nbytes <= MOST_WASTE * nbytes + 300  # a key and its entry
    assert abs(tier.stats().nbytes - taken) <= 300


@pytest.mark.parametrize("end", [b"", SECOND], ids=["first", "second"])
def test_a_record_without_a_part_is_a_miss_and_can_be_put_again(tier, client, end):
    record = put(1, CUT)
    tier.put([record])
    client.delete(PREFIX + record.key + end)
    assert tier.get([record.key]) == [None]
    assert tier.contains([record.key]) == [False]
    assert tier.stats().num_dropped == 1
    assert tier.put([record]) == [True]
    assert tier.get([record.key]) == [bytes(record.record)]


def test_damage_is_returned_for_its_reader_to_see(tier, client):
    record = put(1, CUT)
    tier.put([record])
    client.setrange(PREFIX + record.key, 0, b"XXXX")
    [found] = tier.get([record.key])
    assert found != bytes(record.record)


def test_what_is_held_is_not_written_again(tier, client):
    tier.put([put(1)])
    written = tier.stats().written_nbytes
    assert tier.put([put(1), put(2)]) == [True, True]
    assert tier.stats().written_nbytes == written + put(2).record.nbytes


def test_records_live_as_long_as_they_may_from_the_last_put(redis_url, client):
    tier = opened(redis_url, ttl_seconds=1000)
    tier.put([put(1, CUT)])
    first, second = client.keys()
    assert 900 < min(client.ttl(first), client.ttl(second)) <= 1000
    client.expire(first, 10)
    client.expire(second, 10)
    tier.put([put(1, CUT)])
    assert 900 < min(client.ttl(first), client.ttl(second)) <= 1000
    tier.close()


def test_its_own_records_stay_within_its_limit(redis_url):
    tier = opened(redis_url, limit_nbytes=10_000)
    assert tier.put([put(number, 2500) for number in range(4)]) == [True] * 4
    assert tier.put([put(9, 20_000)]) == [False]
    held = tier.contains([put(number).key for number in range(4)])
    assert held == [False, True, True, True]
    stats = tier.stats()
    assert stats.nbytes <= stats.limit_nbytes == 10_000
    assert (stats.num_records, stats.num_dropped, stats.num_refused) == (3, 1, 1)
    tier.close()


def test_clearing_leaves_what_others_wrote(tier, redis_url, client):
    client.set("theirs", "1")
    other = opened(redis_url)
    other.put([put(1)])
    tier.put([put(1), put(2, CUT)])
    tier.clear()
    assert tier.contains([put(1).key, put(2).key]) == [True, False]
    assert sorted(client.keys()) == sorted([b"theirs", PREFIX + put(1).key])
    assert tier.stats().num_records == 0
    other.close()


def test_dropped_records_are_gone(tier, client):
    tier.put([put(1, CUT), put(2)])
    tier.drop([put(1).key, put(3).key])
    assert client.keys() == [PREFIX + put(2).key]
    assert tier.stats().num_records == 1


def test_statistics_ask_the_store_once_in_a_while(tier):
    assert tier.stats().shared_nbytes > 0
    tier._client.info = None  # a second time would fail
    assert tier.stats().shared_nbytes > 0


def test_a_full_store_refuses(tmp_path):
    with redis_server(tmp_path, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as url:
        tier = opened(url)
        records = [put(number, MIB + 156) for number in range(12)]
        taken = tier.put(records)
        assert taken[:3] == [True] * 3
        assert not taken[-1]
        found = tier.get([record.key for record in records])
        assert [each is not None for each in found] == taken
        stats = tier.stats()
        assert stats.num_refused == taken.count(False)
        assert stats.limit_nbytes == 8 * MIB
        tier.close()


def test_what_a_store_evicts_is_a_miss(tmp_path):
    with redis_server(tmp_path, "--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru") as url:
        tier = opened(url)
        records = [put(number, MIB - 64) for number in range(12)]
        assert tier.put(records) == [True] * 12
        found = tier.get([record.key for record in records])
        assert 0 < found.count(None) < 12
        assert all(each in (None, bytes(record.record)) for each, record in zip(found, records, strict=True))
        assert tier.stats().num_dropped == found.count(None)
        tier.close()


def test_a_password_comes_from_the_url_or_the_settings(tmp_path):
    with redis_server(tmp_path, "--requirepass", "open sesame") as url:
        opened(url, password="open sesame").close()
        with_password = url.replace("redis://", "redis://:open%20sesame@")
        opened(with_password).close()
        opened(with_password, password="of another store").close()
        for wrong in (url, url.replace("redis://", "redis://:s3cret@")):
            with pytest.raises(ConfigError, match="PAGODA_KV_REMOTE_PASSWORD") as caught:
                opened(wrong)
            assert "s3cret" not in str(caught.value)


def test_a_socket_of_this_machine(client):
    tier = opened(f"unix://{client.config_get('unixsocket')['unixsocket']}")
    tier.put([put(1)])
    assert tier.contains([put(1).key]) == [True]
    tier.close()


@pytest.mark.parametrize("url", ["http://host", "redis://host:port", "redis://127.0.0.1?socket_timeout=soon"])
def test_a_url_that_cannot_be_used_is_refused(url):
    with pytest.raises(ConfigError, match="cannot be used"):
        opened(url)


def test_an_option_that_there_is_none_of_is_refused(redis_url):
    with pytest.raises(ConfigError, match="wrong option"):
        opened(f"{redis_url}?colour=blue")


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_store_that_is_not_there_is_named(host):
    with pytest.raises(TierError, match=host):
        opened(f"redis://user:s3cret@{host}:{free_port()}")


def test_a_store_that_never_answers_is_given_up():
    with silent_server() as port, pytest.raises(TierError, match="Timeout"):
        opened(f"redis://127.0.0.1:{port}", timeout_seconds=0.05)


def test_a_store_that_dies_is_off_and_comes_back(tmp_path):
    now = [0.0]
    port = free_port()
    settings = TierSettings(where=f"redis://127.0.0.1:{port}", timeout_seconds=30)
    guard = GuardedTier("remote", lambda: RedisTier.open(settings), Limits(call_seconds=30), lambda: now[0])
    assert f"127.0.0.1:{port}" in guard.stats().fault
    with redis_server(tmp_path, port=port):
        now[0] += 1
        assert guard.put([put(1)]) == [True]
        assert guard.stats().fault is None
    for _ in range(3):
        assert guard.get([put(1).key]) == [None]
    assert "off for 0 s" in guard.stats().fault
    with redis_server(tmp_path, port=port):
        now[0] += 1
        assert guard.get([put(1).key]) == [None]  # it kept nothing, and says so
        assert guard.stats().fault is None
        assert guard.put([put(1)]) == [True]
        assert guard.get([put(1).key]) == [bytes(put(1).record)]
    guard.close()


@pytest.mark.parametrize("num_bytes", [0, 100, 1000, 70_000, CUT, CUT + 2000])
def test_a_store_that_dies_in_the_middle_is_a_miss(tier, redis_url, num_bytes):
    records = [put(number, nbytes) for number, nbytes in enumerate([800, 40_000, CUT])]
    tier.put(records)
    with cutting_proxy(urlsplit(redis_url).port, num_bytes) as port:
        settings = TierSettings(where=f"redis://127.0.0.1:{port}", timeout_seconds=30)
        guard = GuardedTier("remote", lambda: RedisTier.open(settings), Limits(call_seconds=30))
        for _ in range(2):
            for record in records:
                assert guard.get([record.key])[0] in (None, bytes(record.record))
        assert num_bytes > MIB or guard.stats().num_errors > 0
        guard.close()
    assert tier.get([record.key for record in records]) == [bytes(record.record) for record in records]


def test_a_connection_that_the_store_ended_is_made_again(tier, client):
    tier.put([put(1)])
    client.client_kill_filter(_type="normal", skipme=True)
    assert tier.get([put(1).key]) == [bytes(put(1).record)]


def _put_elsewhere(url, start):
    tier = opened(url)
    assert all(tier.put([put(number, CUT) for number in range(start, start + 3)]))
    tier.close()


def test_processes_share_records(redis_url, tier):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_put_elsewhere, args=(redis_url, start)) for start in (0, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    found = tier.get([put(number).key for number in range(5)])
    assert found == [bytes(put(number, CUT).record) for number in range(5)]
    assert tier.stats().num_records == 0


def test_what_is_given_out_of_a_url_is_no_secret():
    assert "secret" not in repr(TierSettings(password="secret"))
