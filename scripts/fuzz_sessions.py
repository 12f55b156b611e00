"""Breaks session files at random and reads them: each is read, or refused by name, in bounded time and memory.

Some have right checksums all the same, as whoever means harm would write them. The same ones for the same seed.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from time import perf_counter
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64_digest, xxh3_128, xxh3_128_digest

from pagoda.cache import session_file
from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.names import Identity
from pagoda.cache.session_file import FILE_HEADER_NBYTES, SessionFile, write_session
from pagoda.cache.session_parts import Conversation, Description
from pagoda.cache.tiers.record import HEADER_NBYTES, Draft, Kind, Label
from pagoda.errors import PageRecordError, SessionError

PAGE_TOKENS = 16
IDENTITY = Identity("model", "weights", "", "layout", "bf16", "", PAGE_TOKENS, "{}")
HUGE = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
VALUES = ("[" * 5000, "{}", "null", "9" * 5000, '"\\ud800"', "[]," * 2000, "-1", "1e999", '"\x00"', "NaN", "[[],[[]]]")
MOST_SECONDS = 1.0
MOST_TIMES = 16  # as much memory as the file has bytes
MOST_NBYTES = 256 << 10  # and so many more


class Parts(NamedTuple):
    """A session taken apart."""

    fields: bytes
    description: bytes
    conversation: bytes
    records: bytes
    table: bytes

    @classmethod
    def of(cls, content: bytes) -> Parts:
        header = session_file._read_header(content[:FILE_HEADER_NBYTES])
        starts = [FILE_HEADER_NBYTES, header.conversation_start, header.records_start, header.table_start, len(content)]
        return cls(content[: session_file._FIELDS.size], *(content[a:b] for a, b in pairwise(starts)))

    def joined(self) -> bytes:
        """With lengths and checksums that are right."""
        header = session_file._Header(*session_file._FIELDS.unpack(self.fields)[2:])._replace(
            description_nbytes=len(self.description),
            conversation_nbytes=len(self.conversation),
            records_nbytes=len(self.records),
            description_checksum=xxh3_128_digest(self.description),
            conversation_checksum=xxh3_128_digest(self.conversation),
            table_checksum=xxh3_128_digest(self.table),
        )
        return header.packed() + self.description + self.conversation + self.records + self.table


def session(folder: Path, num_pages: int, random: Random) -> bytes:
    """A session as it should be."""
    tokens = [random.randrange(1 << 17) for _ in range(num_pages * PAGE_TOKENS + 5)]
    digest = IDENTITY.digest
    records = []
    for number in range(num_pages):
        own = token_key(tokens[number * PAGE_TOKENS :][:PAGE_TOKENS])
        name, parent, end = (number + 1).to_bytes(16), number.to_bytes(16), (number + 1) * PAGE_TOKENS
        draft = Draft(Label(digest, digest, bytes(8), Kind.PAGE, number % 3, name, parent, end, own), 512)
        draft.body[:] = np.frombuffer(random.randbytes(512), np.uint8)
        records.append(draft.seal(1_000))
    messages = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": [{"text": "A model."}]}]
    conversation = Conversation(np.array(tokens, np.int32), "a title", messages)
    write_session(folder / "whole", Description(IDENTITY, "tiny", 1_000, "talk"), conversation, records)
    return (folder / "whole").read_bytes()


def _flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 30))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(content: bytes, random: Random) -> bytes:
    return content[: random.choice((0, 1, FILE_HEADER_NBYTES, random.randrange(len(content))))]


def _zero(content: bytes, random: Random) -> bytes:
    start, end = sorted(random.randrange(len(content) + 1) for _ in range(2))
    return content[:start] + bytes(end - start) + content[end:]


def _insert(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + random.randbytes(random.choice((1, 8, 100, 4096))) + content[at:]


def _remove(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content))
    return content[:start] + content[start + random.choice((1, 8, 100)) :]


def _swap(content: bytes, random: Random) -> bytes:
    size = random.choice((1, 8, 40))
    first, second = sorted(random.randrange(len(content) - 2 * size) for _ in range(2))
    second = max(second, first + size)
    pieces = content[:first], content[first : first + size], content[first + size : second]
    return b"".join((pieces[0], content[second : second + size], pieces[2], pieces[1], content[second + size :]))


RAW = (_flip, _cut, _zero, _insert, _remove, _swap)


def _header_number(content: bytes, random: Random) -> bytes:
    """A length of the header is another, and its checksum right."""
    at, kind = random.choice(((8, "<I"), (12, "<I"), (16, "<I"), (24, "<Q"), (32, "<Q"), (4, "<H"), (6, "<B")))
    changed = bytearray(content)
    struct.pack_into(kind, changed, at, _number(struct.unpack_from(kind, content, at)[0], kind, random))
    fields = bytes(changed[: session_file._FIELDS.size])
    return fields + xxh3_64_digest(fields) + content[FILE_HEADER_NBYTES:]


def _number(value: int, kind: str, random: Random) -> int:
    changed = random.choice((*HUGE, value + 1, value - 1, value + 40, value * 2, value // 2, random.getrandbits(64)))
    return changed % (1 << 8 * struct.calcsize(kind))


def _table(content: bytes, random: Random) -> bytes:
    """Offsets and lengths are others, or swapped, with a right checksum."""
    parts = Parts.of(content)
    table = np.frombuffer(parts.table, session_file._TABLE).copy()
    field = random.choice(("offset", "nbytes", "key"))
    first, second = random.randrange(len(table)), random.randrange(len(table))
    if field == "key" or random.random() < 0.5:
        table[field][[first, second]] = table[field][[second, first]]
    else:
        table[field][first] = _number(int(table[field][first]), "<Q", random)
    return parts._replace(table=table.tobytes()).joined()


def _json(content: bytes, random: Random) -> bytes:
    """What a session says of itself is changed, with right checksums."""
    parts = Parts.of(content)
    field = random.choice(("description", "conversation"))
    text = getattr(parts, field)
    if random.random() < 0.5:
        at = random.randrange(len(text))
        return parts._replace(**{field: text[:at] + random.choice(VALUES).encode() + text[at:]}).joined()
    values = [at for at in range(len(text)) if text[at : at + 2] == b": "]
    at = random.choice(values) + 2
    end = min((end for end in (text.find(b",", at), text.find(b"}", at)) if end > 0), default=len(text))
    return parts._replace(**{field: text[:at] + random.choice(VALUES).encode() + text[end:]}).joined()


def _raw_part(content: bytes, random: Random) -> bytes:
    """A part is broken, and its checksum is that of what it has become."""
    parts = Parts.of(content)
    field = random.choice(("description", "conversation", "records", "table"))
    return parts._replace(**{field: random.choice(RAW)(getattr(parts, field), random)}).joined()


def _record(content: bytes, random: Random) -> bytes:
    """A number in the header of a record is another, and its checksums are right."""
    parts = Parts.of(content)
    table = np.frombuffer(parts.table, session_file._TABLE)
    records, entry = bytearray(parts.records), table[random.randrange(len(table))]
    start = int(entry["offset"] - table["offset"][0])
    record = records[start : start + int(entry["nbytes"])]
    at, kind = random.choice(
        ((4, "<H"), (6, "<B"), (7, "<B"), (8, "<B"), (12, "<I"), (16, "<I"), (20, "<Q"), (28, "<Q"))
    )
    struct.pack_into(kind, record, at, _number(struct.unpack_from(kind, record, at)[0], kind, random))
    fields_nbytes = HEADER_NBYTES - 24
    record[fields_nbytes : fields_nbytes + 8] = xxh3_64_digest(record[:fields_nbytes])
    record[HEADER_NBYTES - 16 : HEADER_NBYTES] = xxh3_128(
        bytes(record[: HEADER_NBYTES - 16] + record[HEADER_NBYTES:])
    ).digest()
    records[start : start + len(record)] = record
    return parts._replace(records=bytes(records)).joined()


KINDS: tuple[Callable[[bytes, Random], bytes], ...] = (*RAW, _header_number, _table, _json, _raw_part, _record)


class Outcome(NamedTuple):
    number: int
    mutation: str
    kind: str
    seconds: float
    nbytes: int
    is_right: bool


def outcome(number: int, mutation: str, path: Path) -> Outcome:
    """Of reading all of a file."""
    tracemalloc.reset_peak()
    before, begun = tracemalloc.get_traced_memory()[0], perf_counter()
    try:
        kind, is_right = _read(path), True
    except (SessionError, PageRecordError) as error:
        kind, is_right = type(error).__name__, bool(str(error))
    except Exception as error:
        kind, is_right = repr(error), False
    seconds, nbytes = perf_counter() - begun, tracemalloc.get_traced_memory()[1] - before
    is_bounded = seconds < MOST_SECONDS and nbytes < MOST_TIMES * path.stat().st_size + MOST_NBYTES
    return Outcome(number, mutation, kind, seconds, nbytes, is_right and is_bounded)


def _read(path: Path) -> str:
    with SessionFile.open(path) as file:
        damages = file.verify()
        str(file.description), str(file.conversation)
        return "damaged records" if damages else "read"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random = Random(arguments.seed)
    outcomes = []
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name, "broken")
        bases = [session(folder, num_pages, random) for num_pages in (3, 20, 400)]
        for number in range(arguments.mutations):
            mutation = random.choice(KINDS)
            path.write_bytes(mutation(random.choice(bases), random))
            outcomes.append(outcome(number, mutation.__name__, path))
    return _report(outcomes)


def _report(outcomes: list[Outcome]) -> int:
    counts = Counter(each.kind for each in outcomes)
    print(f"{len(outcomes)} mutations: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common()))
    slowest = max(outcomes, key=lambda each: each.seconds)
    largest = max(outcomes, key=lambda each: each.nbytes)
    print(f"slowest {slowest.seconds * 1e3:.1f} ms: {slowest}\nlargest {largest.nbytes:,} bytes: {largest}")
    wrong = [each for each in outcomes if not each.is_right]
    print(*(f"WRONG {each}" for each in wrong), sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
