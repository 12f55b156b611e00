"""Bounds how many bytes of bodies are held for requests in flight, for each tenant and for all.

What a request has sent is held until it is answered, since its prompt and its options go on being used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pagoda.errors import HttpError

MOST_BODIES = 32  # of the largest size; most are a thousandth of that
TENANT_SHARE = 0.5  # of them, where there are several tenants

TOO_LARGE = "The body is longer than {} bytes; send less."


class Bodies:
    """Allows bodies of at most `most_nbytes` each, and of `MOST_BODIES` times that together."""

    def __init__(self, most_nbytes: int, has_tenants: bool) -> None:
        self.most_nbytes = most_nbytes
        self._most_of_all = MOST_BODIES * most_nbytes
        self._most_of_each = int(TENANT_SHARE * self._most_of_all) if has_tenants else self._most_of_all
        self._held: Counter[str] = Counter()  # by tenant

    @contextmanager
    def hold(self, tenant: str) -> Iterator[Body]:
        """A body of a tenant, whose bytes count until the end."""
        body = Body(self, tenant)
        try:
            yield body
        finally:
            body.forget()

    def add(self, tenant: str, nbytes: int) -> None:
        """Raises HttpError 429 or 503 if so many more are too many."""
        if self._held[tenant] + nbytes > self._most_of_each:
            raise _full(429, f"The bodies of your requests in flight have more than {self._most_of_each} bytes")
        if self._held.total() + nbytes > self._most_of_all:
            raise _full(503, f"The bodies of all requests in flight have more than {self._most_of_all} bytes")
        self._held[tenant] += nbytes

    def remove(self, tenant: str, nbytes: int) -> None:
        self._held[tenant] -= nbytes
        if not self._held[tenant]:
            del self._held[tenant]


class Body:
    """One body, as it comes."""

    def __init__(self, bodies: Bodies, tenant: str) -> None:
        self._bodies = bodies
        self._tenant = tenant
        self._nbytes = 0
        self._num_held = 0

    def expect(self, nbytes: int) -> None:
        """So many bytes are to come. Raises HttpError 413, 429 or 503."""
        most = self._bodies.most_nbytes
        if nbytes > most:
            raise HttpError(413, TOO_LARGE.format(most), code="request_too_large")
        if nbytes > self._num_held:
            self._bodies.add(self._tenant, nbytes - self._num_held)
            self._num_held = nbytes

    def add(self, nbytes: int) -> None:
        """So many bytes have come, also of those that were not announced. Raises HttpError 413, 429 or 503."""
        self._nbytes += nbytes
        self.expect(self._nbytes)

    def forget(self) -> None:
        self._bodies.remove(self._tenant, self._num_held)
        self._num_held = 0


def _full(status: int, reason: str) -> HttpError:
    return HttpError(status, f"{reason}; try later.", code="too_many_bytes", retry_after_seconds=1)
