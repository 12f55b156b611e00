"""Records as objects of an S3-compatible store, of a folder that engines share, or of memory, which tests use.

`s3://bucket/prefix`; what an address leaves open comes from the AWS_* variables that every client of S3 reads, or
stands in it: `?endpoint=https://host&region=eu-central-1`. Such stores have no clock that would let records go, and
drop none for room: a lifecycle rule of the bucket does.

What others wrote is never cleared. An object is created whole or not at all, and never written over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from pagoda.cache.tiers.base import Put, Tier, TierSettings, TierStats
from pagoda.cache.tiers.record import VERSION, Bytes
from pagoda.cache.tiers.store_url import shown_url
from pagoda.cache.tiers.written import Written
from pagoda.errors import ConfigError, TierError

FOLDER = f"pagoda-{VERSION}"
NUM_THREADS = 8  # requests at a time: each waits for the network most of its time
MOST_RETRIES = 2

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class ObjectTier(Tier):
    def __init__(self, store: Any, settings: TierSettings) -> None:
        """`store` is one of obstore."""
        self._store = store
        self._where = shown_url(settings.where)
        self._written = Written(settings.limit_nbytes)
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="pagoda-objects")

    @classmethod
    def open(cls, settings: TierSettings) -> ObjectTier:
        tier = cls(_store(settings), settings)
        try:
            tier._ask_once()
        except BaseException:
            tier.close()
            raise
        return tier

    @property
    def name(self) -> str:
        return "remote"

    @property
    def is_instant(self) -> bool:
        return False

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return self._each(self._has, keys)

    def num_leading(self, keys: Sequence[bytes]) -> int:
        """Asks twice as many at a time as before, so that a short prefix costs few requests."""
        start, step = 0, NUM_THREADS
        while start < len(keys):
            held = self.contains(keys[start : start + step])
            if False in held:
                return start + held.index(False)
            start, step = start + len(held), 2 * step
        return len(keys)

    def get(self, keys: Sequence[bytes]) -> list[Bytes | None]:
        found: list[Bytes | None] = list(self._each(self._get_one, keys))
        self._written.read(keys, found)
        return found

    def put(self, records: Sequence[Put]) -> list[bool]:
        taken = self._each(self._put_one, records)
        self._written.refused(taken.count(False))
        return taken

    def drop(self, keys: Sequence[bytes]) -> None:
        self._written.forget(keys)
        self._each(self._delete, keys)

    def clear(self) -> None:
        self._each(self._delete, self._written.take_all())

    def stats(self) -> TierStats:
        return self._written.stats()

    def flush(self) -> None:
        """What was put is in the store."""

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _each(self, call: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
        if len(items) <= 1:
            return [call(item) for item in items]
        return list(self._threads.map(call, items))

    def _has(self, key: bytes) -> bool:
        from obstore import head

        with self._errors():
            try:
                head(self._store, _path(key))
            except FileNotFoundError:
                return False
            return True

    def _get_one(self, key: bytes) -> memoryview | None:
        from obstore import get

        with self._errors():
            try:
                return memoryview(get(self._store, _path(key)).bytes())
            except FileNotFoundError:
                return None

    def _put_one(self, record: Put) -> bool:
        from obstore import put
        from obstore.exceptions import AlreadyExistsError

        if not self._written.fits(record.record.nbytes):
            return False
        with self._errors():
            try:
                put(self._store, _path(record.key), record.record, mode="create", use_multipart=False)
            except AlreadyExistsError:
                self._written.used([record.key])
                return True
        for key in self._written.add(*record, record.record.nbytes):
            self._delete(key)
        return True

    def _delete(self, key: bytes) -> None:
        from obstore import delete

        with self._errors():
            try:
                delete(self._store, _path(key))
            except FileNotFoundError:
                return

    def _ask_once(self) -> None:
        """See that the store can be used, by a list of what nobody writes."""
        from obstore import list as list_objects
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        with self._errors():
            try:
                next(iter(list_objects(self._store, prefix=f"{FOLDER}/none", chunk_size=1)), None)
            except (PermissionDeniedError, UnauthenticatedError) as error:
                raise ConfigError(
                    f"The store at {self._where} does not let us list, read and write ({_short(error)}); give its keys "
                    "in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
                ) from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Inside the block whatever obstore raises is a TierError that names the store."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            raise TierError(f"The store at {self._where} failed: {_short(error)}") from error


def _store(settings: TierSettings) -> Any:
    try:
        from obstore import store as stores
        from obstore.exceptions import BaseError
    except ImportError:
        raise ConfigError("Stores by s3:// need obstore; install it with: pip install 'pagoda-kv[remote]'") from None
    url = urlsplit(settings.where)
    seconds = timedelta(seconds=settings.timeout_seconds)
    try:
        if url.scheme == "file":
            return stores.LocalStore(unquote(url.path), mkdir=True)
        if url.scheme == "memory":
            return stores.MemoryStore()
        if url.scheme == "s3" and url.netloc:
            return stores.S3Store(
                url.netloc,
                prefix=unquote(url.path).strip("/") or None,
                config=dict(parse_qsl(url.query)),  # type: ignore[arg-type]  # it checks their names
                client_options={"timeout": seconds, "connect_timeout": seconds, "allow_http": True},
                retry_config={"max_retries": MOST_RETRIES, "retry_timeout": seconds},
            )
    except (BaseError, OSError, ValueError, TypeError) as error:
        raise ConfigError(f"The store at {shown_url(settings.where)} cannot be used: {_short(error)}") from None
    raise ConfigError(f"{shown_url(settings.where)} is no store of objects; give one such as s3://bucket/prefix.")


def _path(key: bytes) -> str:
    return f"{FOLDER}/{key.hex()}"


def _short(error: Exception) -> str:
    """What went wrong without the library's account of itself, which has many lines."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
