"""Keeps the latest values of each tenant by id; no tenant's push out another's."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass
class _Shelf(Generic[Value]):
    """What one tenant has here, the oldest first, with the bytes of each."""

    values: OrderedDict[str, tuple[Value, int]] = field(default_factory=OrderedDict)
    nbytes: int = 0

    def remove(self, name: str) -> None:
        self.nbytes -= self.values.pop(name)[1]


class Latest(Generic[Value]):
    """Keeps at most `most` values of each tenant, of at most `most_nbytes` together; the oldest go first.

    How many bytes a value has is said by who puts it here.
    """

    def __init__(self, most: int, most_nbytes: int) -> None:
        self._most = most
        self._most_nbytes = most_nbytes
        self._shelves: dict[str, _Shelf[Value]] = {}

    def put(self, tenant: str, name: str, value: Value, nbytes: int) -> None:
        """In place of what had this name. What has more bytes than all may have is not kept."""
        shelf = self._shelves.setdefault(tenant, _Shelf())
        if name in shelf.values:
            shelf.remove(name)
        if nbytes > self._most_nbytes:
            return
        shelf.values[name] = value, nbytes
        shelf.nbytes += nbytes
        while len(shelf.values) > self._most or shelf.nbytes > self._most_nbytes:
            shelf.remove(next(iter(shelf.values)))

    def find(self, tenant: str, name: str) -> Value | None:
        shelf = self._shelves.get(tenant)
        found = None if shelf is None else shelf.values.get(name)
        return None if found is None else found[0]

    def find_any(self, name: str) -> Value | None:
        """What somebody has under this name; of several the first's."""
        found = (shelf.values[name] for shelf in self._shelves.values() if name in shelf.values)
        return next(found, (None, 0))[0]

    def remove(self, tenant: str, name: str) -> None:
        """Raises KeyError if it is not here."""
        self._shelves[tenant].remove(name)
