"""The latest of what each tenant has left here, by id: what one leaves pushes out nothing of another's."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Latest(Generic[Value]):
    """At most `most` values of each tenant; the oldest go first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: dict[str, OrderedDict[str, Value]] = {}

    def put(self, tenant: str, name: str, value: Value) -> None:
        own = self._of.setdefault(tenant, OrderedDict())
        own[name] = value
        while len(own) > self._most:
            own.popitem(last=False)

    def find(self, tenant: str, name: str) -> Value | None:
        own = self._of.get(tenant)
        return None if own is None else own.get(name)

    def remove(self, tenant: str, name: str) -> None:
        """Raises KeyError if it is not here."""
        del self._of[tenant][name]
