"""`pagoda kv`: what lies in a folder of pages, whether it is whole, and ways to thin it out and to carry it elsewhere.

No server is asked, and no model is loaded but to compute what is to lie there (`kv_warm.py`).
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

from rich.console import Console
from rich.table import Table

from pagoda.cache.tiers.base import Put, TierSettings
from pagoda.cache.tiers.disk.archive import read_archive, write_archive
from pagoda.cache.tiers.disk.tier import DiskTier
from pagoda.cache.tiers.disk.upkeep import Damage, StoredPages
from pagoda.cache.tiers.record import Header, Kind, check_record
from pagoda.commands.reading import check_new_file
from pagoda.errors import ConfigError, PageRecordError, TierError
from pagoda.units import format_nbytes

SHOWN_DIGITS = 12


class Row(TypedDict):
    """Records of one identity, kind and tenant."""

    identity: str
    kind: str
    tenant: str
    records: int
    bytes: int
    tokens: int
    newest_seconds: float
    oldest_seconds: float


def run(arguments: Namespace) -> int:
    action: Callable[[Namespace], int] = {
        "ls": _list,
        "verify": _verify,
        "gc": _collect,
        "export": _export,
        "import": _import,
        "warm": _warm,
    }[arguments.action]
    try:
        return action(arguments)
    except OSError as error:
        raise TierError(
            f"{error.filename or arguments.directory} failed: {error.strerror}; mend that first."
        ) from error


def _list(arguments: Namespace) -> int:
    stored = StoredPages(arguments.directory)
    rows = _rows(stored.headers(), time.time())
    if arguments.json:
        _print_json({"bytes": stored.nbytes, "segments": stored.num_segments, "pages": rows})
        return 0
    console = Console()
    console.print(
        f"{format_nbytes(stored.nbytes)} in {stored.num_segments:,} segment{'s' * (stored.num_segments != 1)}",
        highlight=False,
    )
    if rows:
        console.print(_table(rows))
    return 0


def _rows(headers: Iterable[Header], now: float) -> list[Row]:
    """The largest first."""
    groups: defaultdict[tuple[str, str, str], list[Header]] = defaultdict(list)
    for header in headers:
        groups[header.identity.hex(), _kind(header.kind), header.tenant.hex()].append(header)
    rows = [_row(names, group, now) for names, group in groups.items()]
    return sorted(rows, key=lambda row: -row["bytes"])


def _row(names: tuple[str, str, str], group: list[Header], now: float) -> Row:
    identity, kind, tenant = names
    ages = [max(0.0, now - header.created_ms / 1000) for header in group]
    return Row(
        identity=identity,
        kind=kind,
        tenant=tenant,
        records=len(group),
        bytes=sum(header.record_nbytes for header in group),
        tokens=sum(header.num_own_tokens for header in group),
        newest_seconds=min(ages),
        oldest_seconds=max(ages),
    )


def _kind(kind: int) -> str:
    return Kind(kind).name.lower() if kind in set(Kind) else f"kind {kind}"


def _table(rows: Iterable[Row]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("identity", "kind", "tenant"):
        table.add_column(heading, no_wrap=True)
    for heading in ("records", "bytes", "tokens", "age"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            *(row["identity"][:SHOWN_DIGITS], row["kind"], row["tenant"][:SHOWN_DIGITS]),
            *(f"{row['records']:,}", format_nbytes(row["bytes"]), f"{row['tokens']:,}"),
            f"{_age(row['newest_seconds'])} to {_age(row['oldest_seconds'])}",
        )
    return table


def _age(seconds: float) -> str:
    for unit, of_unit in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= of_unit:
            return f"{seconds / of_unit:.0f} {unit}"
    return f"{seconds:.0f} s"


def _verify(arguments: Namespace) -> int:
    stored = StoredPages(arguments.directory)
    num_records = stored.num_records
    damages = [_damage(each) for each in stored.damages()]
    if arguments.json:
        _print_json({"records": num_records, "bytes": stored.nbytes, "damaged": damages})
    else:
        lines = [f"{each['file']}: {each['bytes']:,} bytes from {each['start']:,} on" for each in damages]
        verdict = f"{len(damages):,} damaged" if damages else "nothing is damaged"
        lines.append(f"{num_records:,} records, {format_nbytes(stored.nbytes)}: {verdict}")
        sys.stdout.write("\n".join(lines) + "\n")
    return 1 if damages else 0


def _damage(damage: Damage) -> dict[str, Any]:
    key = None if damage.key is None else damage.key.hex()
    return {"file": str(damage.file), "start": damage.start, "bytes": damage.nbytes, "key": key}


def _collect(arguments: Namespace) -> int:
    if arguments.bytes is None and arguments.older is None and arguments.identity is None:
        raise ConfigError("Nothing says what is to go; give --bytes, --older or --identity.")
    stored = StoredPages(arguments.directory)
    num_records, nbytes = stored.num_records, stored.nbytes
    if arguments.older is not None or arguments.identity is not None:
        stored.remove(_unwanted(arguments.older, arguments.identity, time.time()))
    if arguments.bytes is not None:
        stored.shrink(arguments.bytes)
    sys.stdout.write(
        f"{num_records - stored.num_records:,} records and {format_nbytes(nbytes - stored.nbytes)} removed; "
        f"{stored.num_records:,} records and {format_nbytes(stored.nbytes)} are left\n"
    )
    return 0


def _unwanted(older_seconds: float | None, identity: str | None, now: float) -> Callable[[Header], bool]:
    """Whether a record is to go: it is old, and of this identity, as far as these are given."""

    def is_unwanted(header: Header) -> bool:
        is_old = older_seconds is None or header.created_ms / 1000 < now - older_seconds
        return is_old and (identity is None or header.identity.hex().startswith(identity))

    return is_unwanted


def _export(arguments: Namespace) -> int:
    check_new_file(arguments.file, arguments.force)
    num_records = write_archive(arguments.file, StoredPages(arguments.directory).records())
    sys.stdout.write(f"{num_records:,} records, {format_nbytes(arguments.file.stat().st_size)}\n")
    return 0


@dataclass
class _Imported:
    """What became of the records of a file. `fault` says why it was not read to its end."""

    num_taken: int = 0
    num_damaged: int = 0
    num_refused: int = 0
    fault: str | None = None


def _import(arguments: Namespace) -> int:
    if not arguments.file.is_file():
        raise ConfigError(f"There is no file {arguments.file}; name one that `pagoda kv export` has written.")
    tier = DiskTier.open(TierSettings(str(arguments.directory), arguments.bytes))
    try:
        if tier.is_read_only:
            raise TierError(f"{tier.stats().fault} Stop the server first, as only one process may change it.")
        imported = _imported(tier, read_archive(arguments.file))
    finally:
        tier.close()
    sys.stdout.write(
        f"{imported.num_taken:,} records taken, {imported.num_damaged:,} damaged, {imported.num_refused:,} too large\n"
    )
    if imported.fault is not None:
        sys.stderr.write(f"error: {arguments.file} was not read to its end. {imported.fault}\n")
    return 1 if imported.fault or imported.num_damaged else 0


def _imported(tier: DiskTier, records: Iterable[memoryview]) -> _Imported:
    imported = _Imported()
    try:
        for record in records:
            try:
                key = check_record(record).key
            except PageRecordError:
                imported.num_damaged += 1
                continue
            (is_taken,) = tier.put([Put(key, record)])
            imported.num_taken += is_taken
            imported.num_refused += not is_taken
    except TierError as error:
        imported.fault = str(error)
    return imported


def _warm(arguments: Namespace) -> int:
    from pagoda.commands import kv_warm

    return kv_warm.run(arguments)


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
