"""What a record proves: that it is whole, undamaged and what was asked for, or else which field is not."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import numpy as np
import pytest

from pagoda.cache.tiers.cipher import AesGcmCipher
from pagoda.cache.tiers.record import HEADER_NBYTES, Draft, Kind, Label, check_record, read_header, read_record
from pagoda.errors import PageRecordError

NBYTES = 300
# More by hand: PAGODA_CORRUPTIONS=10000.
NUM_CORRUPTIONS = int(os.environ.get("PAGODA_CORRUPTIONS", "500"))
CIPHER = AesGcmCipher.from_text("07" * 32)

every_kind = pytest.mark.parametrize("kind", Kind)
every_cipher = pytest.mark.parametrize("cipher", [None, CIPHER], ids=["plain", "encrypted"])


def label_of(kind: Kind) -> Label:
    tokens = np.arange(4, dtype=np.int32).tobytes()
    return Label(b"i" * 16, b"s" * 16, b"t" * 8, kind, 2, b"n" * 16, b"p" * 16, 20, tokens)


def record_of(kind: Kind, cipher: AesGcmCipher | None = None, nbytes: int = NBYTES) -> bytes:
    draft = Draft(label_of(kind), nbytes)
    draft.body[:] = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
    return bytes(draft.seal(1_700_000_000_000, cipher))


def is_taken(data: bytes, kind: Kind, cipher: AesGcmCipher | None) -> bool:
    """Whether anybody would take these bytes for the page that was asked for."""
    try:
        read_record(data, cipher).check_is(label_of(kind))
    except PageRecordError:
        return False
    return True


@every_kind
@every_cipher
@pytest.mark.parametrize("nbytes", [0, 1, NBYTES])
def test_it_comes_back_as_it_was(kind: Kind, cipher: AesGcmCipher | None, nbytes: int) -> None:
    record = read_record(record_of(kind, cipher, nbytes), cipher)
    record.check_is(label_of(kind))
    assert record.tokens == label_of(kind).tokens
    assert record.body.tobytes() == np.random.default_rng(0).integers(0, 256, nbytes, np.uint8).tobytes()
    assert record.header.key == label_of(kind).key
    assert record.header.num_own_tokens == 4


@every_kind
@every_cipher
def test_no_byte_can_be_another(kind: Kind, cipher: AesGcmCipher | None) -> None:
    whole = record_of(kind, cipher)
    assert is_taken(whole, kind, cipher)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        assert not is_taken(bytes(damaged), kind, cipher), f"byte {position}"


@every_cipher
def test_nothing_that_is_broken_at_random_is_taken(cipher: AesGcmCipher | None) -> None:
    draw = random.Random(1)
    records = {kind: record_of(kind, cipher) for kind in Kind}
    for _ in range(NUM_CORRUPTIONS):
        kind = draw.choice(list(Kind))
        data = bytearray(records[kind])
        start, length = draw.randrange(len(data)), draw.randrange(1, 64)
        match draw.randrange(5):
            case 0:
                data[start : start + length] = draw.randbytes(len(data[start : start + length]))
            case 1:
                del data[start : start + length]
            case 2:
                data[start:start] = draw.randbytes(length)
            case 3:
                data[start : start + length] = bytes(len(data[start : start + length]))
            case _:
                other = records[draw.choice(list(Kind))]
                data[start:] = other[draw.randrange(len(other)) :]
        assert bytes(data) == records[kind] or not is_taken(bytes(data), kind, cipher)


@every_kind
def test_a_cut_record_is_refused_wherever_it_is_cut(kind: Kind) -> None:
    whole = record_of(kind)
    for length in range(len(whole)):
        assert not is_taken(whole[:length], kind, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("identity", b"I" * 16),
        ("namespace", b"S" * 16),
        ("tenant", b"T" * 8),
        ("kind", Kind.STATE),
        ("group", 1),
        ("name", b"N" * 16),
        ("parent", b"P" * 16),
        ("num_tokens", 21),
        ("tokens", bytes(16)),
    ],
)
def test_another_page_is_refused_by_the_field_that_differs(field: str, value: object) -> None:
    record = read_record(record_of(Kind.PAGE))
    with pytest.raises(PageRecordError) as raised:
        record.check_is(replace(label_of(Kind.PAGE), **{field: value}))
    assert raised.value.field == field


def test_an_encrypted_record_needs_its_key() -> None:
    data = record_of(Kind.PAGE, CIPHER)
    for cipher in (None, AesGcmCipher.from_text("08" * 32)):
        with pytest.raises(PageRecordError) as raised:
            read_record(data, cipher)
        assert raised.value.field == "key"
    assert label_of(Kind.PAGE).tokens not in data


def test_a_header_can_be_read_without_what_follows() -> None:
    data = record_of(Kind.PAGE)
    assert read_header(data[:HEADER_NBYTES]) == check_record(data)
    assert check_record(data).record_nbytes == len(data)
