"""Records in a store that speaks the Redis protocol: Redis, Valkey, and what calls itself compatible.

Engines that name the same store share its pages, so what it holds is not this process's alone: what others wrote is
never cleared, and the store may drop anything. How much it keeps, and which goes first, is set there (`maxmemory`,
`maxmemory-policy allkeys-lru`). A cluster is not supported: longest prefixes are asked of one server.

A record is one value, or two where one would waste memory (`parts.py`). Only its header says which, so the second is
fetched after the first; where it is missing the record is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pagoda.cache.tiers.base import Put, Tier, TierSettings, TierStats
from pagoda.cache.tiers.parts import allocated_nbytes, first_part_nbytes
from pagoda.cache.tiers.record import HEADER_NBYTES, VERSION, Bytes, read_header
from pagoda.cache.tiers.store_url import shown_url
from pagoda.cache.tiers.written import Written
from pagoda.errors import ConfigError, PageRecordError, TierError

PREFIX = b"pagoda:%d:" % VERSION  # a record of another version is not damaged: it is somebody else's
SECOND = b"+"  # ends the key of the second part
MOST_CONNECTIONS = 4
# Pipelines save round trips, but with more bytes than this the client and the server wait for each other: 16 values of
# 1 MiB in one come 2 to 3 times slower than one by one, while those of 64 KiB gain.
PIPELINE_NBYTES = 1 << 20
READ_NBYTES = 1 << 18  # at a time from a socket
STATS_SECONDS = 1.0  # the store is not asked more often what it holds
KEYS_PER_CALL = 1000
ENTRY_NBYTES = 120  # what a key takes beside its value

DISTRUST_HINT = "; if it is the right one, name who vouches for it in its URL, rediss://host:6380?ssl_ca_certs=FILE"
FILE_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

# Which of the keys exist, as "1" and "0"; with an argument of "1" it stops after the first that does not.
HELD_SCRIPT = """
local held = {}
for i, key in ipairs(KEYS) do
  held[i] = redis.call('EXISTS', key)
  if held[i] == 0 and ARGV[1] == '1' then break end
end
return table.concat(held)
"""


class RedisTier(Tier):
    def __init__(self, client: Any, settings: TierSettings) -> None:
        """`client` is one of redis-py, which gives bytes."""
        self._client = client
        self._held_script = client.register_script(HELD_SCRIPT)
        self._where = shown_url(settings.where)
        self._ttl_ms = None if settings.ttl_seconds is None else max(1, int(settings.ttl_seconds * 1000))
        self._written = Written(settings.limit_nbytes)
        self._usual_nbytes = 0  # of first parts, as far as is known
        self._memory: tuple[int | None, int | None] = (None, None)
        self._memory_asked_at = -STATS_SECONDS

    @classmethod
    def open(cls, settings: TierSettings) -> RedisTier:
        tier = cls(_client(settings), settings)
        tier._ask_once()
        return tier

    @property
    def name(self) -> str:
        return "remote"

    @property
    def is_instant(self) -> bool:
        return False

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return [each == ord("1") for each in self._held(keys, stops=False)]

    def num_leading(self, keys: Sequence[bytes]) -> int:
        return self._held(keys, stops=True).count(b"1")

    def get(self, keys: Sequence[bytes]) -> list[Bytes | None]:
        with self._errors():
            found = self._fetch([PREFIX + key for key in keys], self._usual_nbytes)
            self._usual_nbytes = max((len(first) for first in found if first is not None), default=self._usual_nbytes)
            cut = [number for number, first in enumerate(found) if first is not None and _is_cut(first)]
            seconds = self._fetch([PREFIX + keys[number] + SECOND for number in cut], self._usual_nbytes // 4)
            for number, second in zip(cut, seconds, strict=True):
                found[number] = None if second is None else b"".join((found[number] or b"", second))
        self._written.read(keys, found)
        self._unlink([keys[number] for number in cut if found[number] is None])  # halves would not be put again
        return list(found)

    def put(self, records: Sequence[Put]) -> list[bool]:
        taken = self.contains([record.key for record in records])
        with self._errors():
            self._keep([record.key for record, is_held in zip(records, taken, strict=True) if is_held])
            for group in self._groups(records, taken):
                for number, is_taken in zip(group, self._write([records[n] for n in group]), strict=True):
                    taken[number] = is_taken
        self._written.refused(taken.count(False))
        return taken

    def drop(self, keys: Sequence[bytes]) -> None:
        self._written.forget(keys)
        self._unlink(keys)

    def clear(self) -> None:
        self._unlink(self._written.take_all())

    def stats(self) -> TierStats:
        """The limit is what was given, or the store's own; `shared_nbytes` is all that the store holds.

        Of what was written the store may have dropped some, and does not say which.
        """
        shared_nbytes, most_nbytes = self._server_memory()
        stats = self._written.stats()
        nbytes = stats.nbytes if shared_nbytes is None else min(stats.nbytes, shared_nbytes)
        limit = stats.limit_nbytes or most_nbytes
        return replace(stats, nbytes=nbytes, limit_nbytes=limit, shared_nbytes=shared_nbytes)

    def flush(self) -> None:
        """What was put is in the store; whether it writes that down is set there."""

    def close(self) -> None:
        self._client.connection_pool.disconnect()

    def _ask_once(self) -> None:
        from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError

        with self._errors():
            try:
                self._client.ping()
            except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
                raise ConfigError(
                    f"The store at {self._where} does not let us in ({error}); give user and password in its URL, "
                    "redis://user:password@host, or the password in PAGODA_KV_REMOTE_PASSWORD."
                ) from None
            except TypeError as error:  # redis-py hands options it does not know to its connections
                raise ConfigError(f"The URL of the store at {self._where} has a wrong option: {error}.") from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Inside the block whatever redis-py raises is a TierError that names the store."""
        from redis.exceptions import RedisError

        try:
            yield
        except RedisError as error:
            hint = DISTRUST_HINT if "CERTIFICATE_VERIFY_FAILED" in str(error) else ""
            raise TierError(f"The store at {self._where} failed: {error or type(error).__name__}{hint}") from error

    def _held(self, keys: Sequence[bytes], stops: bool) -> bytes:
        if not keys:
            return b""
        with self._errors():
            held: bytes = self._held_script(keys=[PREFIX + key for key in keys], args=[int(stops)])
        return held

    def _fetch(self, names: Sequence[bytes], expected_nbytes: int) -> list[bytes | None]:
        """Values by their whole keys, as many at a time as are worth it; one where nobody knows their size."""
        found: list[bytes | None] = []
        while len(found) < len(names):
            step = max(1, PIPELINE_NBYTES // expected_nbytes) if expected_nbytes else 1
            asked = names[len(found) :][:step]
            values = [self._client.get(asked[0])] if len(asked) == 1 else self._many(("GET", name) for name in asked)
            expected_nbytes = max((len(value) for value in values if value is not None), default=expected_nbytes)
            found += values
        return found

    def _groups(self, records: Sequence[Put], taken: Sequence[bool]) -> Iterator[list[int]]:
        """Which records are to be written, those of one pipeline together."""
        group: list[int] = []
        group_nbytes = 0
        for number, record in enumerate(records):
            if taken[number] or not self._written.fits(_taken_nbytes(record)):
                continue
            if group and group_nbytes + record.record.nbytes > PIPELINE_NBYTES:
                yield group
                group, group_nbytes = [], 0
            group.append(number)
            group_nbytes += record.record.nbytes
        if group:
            yield group

    def _write(self, records: Sequence[Put]) -> list[bool]:
        """Write records in one pipeline, the second part of each before the first, which makes it visible."""
        options = () if self._ttl_ms is None else ("PX", self._ttl_ms)
        commands: list[tuple[Any, ...]] = []
        owners: list[int] = []
        for number, (key, record) in enumerate(records):
            cut = first_part_nbytes(record.nbytes)
            parts = [(key + SECOND, record[cut:]), (key, record[:cut])] if cut < record.nbytes else [(key, record)]
            commands += [("SET", PREFIX + name, part, *options) for name, part in parts]
            owners += [number] * len(parts)
        answers = self._many(commands, raises=False)
        taken = [True] * len(records)
        for number, answer in zip(owners, answers, strict=True):
            taken[number] &= self._is_written(answer)
        self._note_written(records, taken)
        return taken

    def _is_written(self, answer: Any) -> bool:
        """Raises what is no lack of memory: it would be the same for all others."""
        from redis.exceptions import OutOfMemoryError, RedisError

        if isinstance(answer, RedisError) and not isinstance(answer, OutOfMemoryError):
            raise answer
        return not isinstance(answer, RedisError)

    def _note_written(self, records: Sequence[Put], taken: Sequence[bool]) -> None:
        gone: list[bytes] = []
        for record, is_taken in zip(records, taken, strict=True):
            gone += self._written.add(*record, _taken_nbytes(record)) if is_taken else [record.key]
        self._unlink(gone)

    def _keep(self, keys: Sequence[bytes]) -> None:
        """Count records as used, and let them live as long as if they were put now."""
        names = [PREFIX + key + end for key in keys for end in (b"", SECOND)]
        if names:
            self._many(("TOUCH", n) if self._ttl_ms is None else ("PEXPIRE", n, self._ttl_ms) for n in names)
        self._written.used(keys)

    def _unlink(self, keys: Sequence[bytes]) -> None:
        names = [PREFIX + key + end for key in keys for end in (b"", SECOND)]
        with self._errors():
            for start in range(0, len(names), KEYS_PER_CALL):
                self._client.unlink(*names[start : start + KEYS_PER_CALL])

    def _many(self, commands: Any, raises: bool = True) -> list[Any]:
        with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = pipeline.execute(raise_on_error=raises)
        return answers

    def _server_memory(self) -> tuple[int | None, int | None]:
        """What the store holds and may hold, of a moment ago; None where it does not say."""
        from redis.exceptions import RedisError

        now = time.monotonic()
        if now - self._memory_asked_at >= STATS_SECONDS:
            self._memory_asked_at = now
            try:
                info = self._client.info("memory")
            except RedisError:
                return self._memory
            self._memory = info.get("used_memory"), info.get("maxmemory") or None
        return self._memory


def _client(settings: TierSettings) -> Any:
    """A client that gives up in time, and connects again once where a connection was lost."""
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise ConfigError(
            "Stores by redis:// need redis-py; install it with: pip install 'pagoda-kv[remote]'"
        ) from None
    try:
        pool = redis.BlockingConnectionPool.from_url(
            settings.where,
            max_connections=MOST_CONNECTIONS,
            timeout=settings.timeout_seconds,
            socket_timeout=settings.timeout_seconds,
            socket_connect_timeout=settings.timeout_seconds,
            socket_read_size=READ_NBYTES,
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            password=settings.password,
        )
    except ValueError as error:
        raise ConfigError(
            f"The URL of the store, {shown_url(settings.where)}, cannot be used: {error}. Give one such as "
            "redis://host:6379, rediss://host:6380 or unix:///run/redis.sock."
        ) from None
    for option in FILE_OPTIONS:
        file = pool.connection_kwargs.get(option)
        if file is not None and not Path(file).is_file():
            raise ConfigError(f"The URL of {shown_url(settings.where)} has {option} {file}, which is no file.")
    return redis.Redis(connection_pool=pool)


def _is_cut(first: bytes) -> bool:
    """Whether the record goes on after its first part. One that is damaged does not: its reader will see."""
    try:
        return len(first) < read_header(first[:HEADER_NBYTES]).record_nbytes
    except PageRecordError:
        return False


def _taken_nbytes(record: Put) -> int:
    """What a record takes in the store."""
    cut = first_part_nbytes(record.record.nbytes)
    parts = [part for part in (cut, record.record.nbytes - cut) if part]
    return sum(allocated_nbytes(part) + ENTRY_NBYTES for part in parts)
