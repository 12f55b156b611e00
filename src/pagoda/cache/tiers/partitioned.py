"""A tier in parts: one for each tenant that has reserved a share of it, and one for all others.

What a tenant has reserved nobody else can take, and with it nobody can take more. Records are found wherever they lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from pagoda.cache.tiers.base import Put, Tier, TierSettings, TierStats
from pagoda.cache.tiers.record import Bytes, read_header
from pagoda.errors import ConfigError


class PartitionedTier(Tier):
    """`own` has the part of each tenant by its digest (`Label.tenant`), `rest` is everybody else's."""

    def __init__(self, own: Mapping[bytes, Tier], rest: Tier) -> None:
        self._own = dict(own)
        self._rest = rest
        self._parts = [rest, *own.values()]

    @classmethod
    def open(cls, settings: TierSettings) -> NoReturn:  # noqa: ARG003
        raise ConfigError("A tier is divided by who has opened its parts; open another kind.")

    @property
    def name(self) -> str:
        return self._rest.name

    @property
    def fault(self) -> str | None:
        return next((part.fault for part in self._parts if part.fault is not None), None)

    @property
    def is_instant(self) -> bool:
        return all(part.is_instant for part in self._parts)

    @property
    def persists(self) -> bool:
        return self._rest.persists

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return [any(held) for held in zip(*(part.contains(keys) for part in self._parts), strict=True)]

    def get(self, keys: Sequence[bytes]) -> list[Bytes | None]:
        found: dict[bytes, Bytes] = {}
        for part in self._parts:
            left = [key for key in keys if key not in found]
            held = [key for key, is_held in zip(left, part.contains(left), strict=True) if is_held]
            records = zip(held, part.get(held), strict=True)
            found |= {key: record for key, record in records if record is not None}
        return [found.get(key) for key in keys]

    def use(self, keys: Sequence[bytes]) -> None:
        for part in self._parts:
            part.use(keys)

    def put(self, records: Sequence[Put]) -> list[bool]:
        taken: dict[bytes, bool] = {}
        for part in self._parts:
            of_part = [each for each in records if self._part_of(each) is part]
            taken |= {each.key: is_taken for each, is_taken in zip(of_part, part.put(of_part), strict=True)}
        return [taken[each.key] for each in records]

    def drop(self, keys: Sequence[bytes]) -> None:
        for part in self._parts:
            part.drop(keys)

    def damaged(self, keys: Sequence[bytes]) -> None:
        for part in self._parts:
            if held := [key for key, is_held in zip(keys, part.contains(keys), strict=True) if is_held]:
                part.damaged(held)

    def clear(self) -> None:
        for part in self._parts:
            part.clear()

    def flush(self) -> None:
        for part in self._parts:
            part.flush()

    def stats(self) -> TierStats:
        """All parts together, and each fault once."""
        stats = [part.stats() for part in self._parts]
        limits = [each.limit_nbytes for each in stats]
        faults = dict.fromkeys(each.fault for each in stats if each.fault is not None)
        return TierStats(
            num_records=sum(each.num_records for each in stats),
            nbytes=sum(each.nbytes for each in stats),
            limit_nbytes=None if None in limits else sum(filter(None, limits)),
            num_dropped=sum(each.num_dropped for each in stats),
            num_refused=sum(each.num_refused for each in stats),
            num_damaged=sum(each.num_damaged for each in stats),
            num_errors=sum(each.num_errors for each in stats),
            read_nbytes=sum(each.read_nbytes for each in stats),
            written_nbytes=sum(each.written_nbytes for each in stats),
            fault="; ".join(faults) or None,
        )

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def _part_of(self, put: Put) -> Tier:
        return self._own.get(read_header(put.record).tenant, self._rest)
