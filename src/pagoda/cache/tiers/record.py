"""How a page is written down outside its pool: a header that says what it is, its tokens, its bytes.

The same in memory, on disk, in a shared store and in session files. What does not prove to be exactly what it says is
refused, with the field that differs. Knows neither tiers nor layouts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_digest, xxh3_128

from pagoda.cache.prefix.keys import TOKEN_NBYTES
from pagoda.errors import PageRecordError

MAGIC = b"PGDA"
VERSION = 1
NAME_NBYTES = 16
TENANT_NBYTES = 8
NONCE_NBYTES = 12
# Magic, version, kind, group, whether it is encrypted, 3 spare bytes; tokens up to its end, tokens of its own; bytes of
# its pages, bytes of the payload; when it was made, in milliseconds since 1970; digests; the nonce, 8 spare bytes.
_FIELDS = struct.Struct("<4sHBB?3xIIQQQ16s16s16s16s8s12s8x")
_CHECK_NBYTES = 8  # of the fields
_CHECKSUM_NBYTES = 16  # of all but itself
HEADER_NBYTES = _FIELDS.size + _CHECK_NBYTES + _CHECKSUM_NBYTES

Bytes = bytes | bytearray | memoryview


class Kind(IntEnum):
    """What a record holds."""

    PAGE = 1  # keys and values of a page of tokens, or of fewer: the tail of an ended sequence
    STATE = 2  # a recurrent state
    ENCODER = 3  # all pages of the output of an encoder


@dataclass(frozen=True)
class Label:
    """What is written down.

    `identity` and `namespace` are digests (`prefix/names.py`): of the model, its layout and format, and of these with
    whoever may share its pages. `tenant` is a digest of whose it is. `name` is the page's, `parent` that of the page
    before it. It ends after `num_tokens`, the last of which are its own, `tokens`, as a key (`prefix/keys.py`).
    """

    identity: bytes
    namespace: bytes
    tenant: bytes
    kind: Kind
    group: int
    name: bytes
    parent: bytes
    num_tokens: int
    tokens: bytes

    @property
    def key(self) -> bytes:
        """What tiers find it by."""
        return page_key(self.group, self.name)


def page_key(group: int, name: bytes) -> bytes:
    """The key of the record of a page of layer group `group`: a name is one of tokens, and each group has its page."""
    return bytes((group,)) + name


class Header(NamedTuple):
    """What a header says of what follows it: its own tokens, and then `nbytes` of pages."""

    identity: bytes
    namespace: bytes
    tenant: bytes
    kind: int
    group: int
    name: bytes
    parent: bytes
    num_tokens: int
    num_own_tokens: int
    nbytes: int
    payload_nbytes: int
    created_ms: int
    is_encrypted: bool
    nonce: bytes
    checksum: bytes

    @property
    def key(self) -> bytes:
        return page_key(self.group, self.name)

    @property
    def record_nbytes(self) -> int:
        """Of the whole record, with its header."""
        return HEADER_NBYTES + self.payload_nbytes


class Cipher(Protocol):
    """Encrypts payloads, bound to the fields of their headers (authenticated encryption)."""

    @property
    def extra_nbytes(self) -> int:
        """How many bytes longer they become."""

    def new_nonce(self) -> bytes: ...

    def encrypt(self, payload: Bytes, nonce: bytes, fields: bytes) -> bytes: ...

    def decrypt(self, payload: Bytes, nonce: bytes, fields: bytes) -> bytes:
        """Raises PageRecordError if it was written with another key, or for other fields."""


def _plain_memory(nbytes: int) -> NDArray[np.uint8]:
    return np.empty(nbytes, np.uint8)


class Draft:
    """A record in the making: `body`, uint8 [nbytes], is to be filled with the bytes of pages before it is sealed.

    It lies in what `memory` gives for so many bytes.
    """

    def __init__(self, label: Label, nbytes: int, memory: Callable[[int], NDArray[np.uint8]] = _plain_memory) -> None:
        self.label = label
        self._start = HEADER_NBYTES + len(label.tokens)
        self._buffer = memory(self._start + nbytes)
        self._buffer[HEADER_NBYTES : self._start] = np.frombuffer(label.tokens, np.uint8)

    @property
    def nbytes(self) -> int:
        """Of the whole record."""
        return self._buffer.nbytes

    @property
    def body(self) -> NDArray[np.uint8]:
        return self._buffer[self._start :]

    def seal(self, created_ms: int, cipher: Cipher | None = None) -> memoryview:
        """The record; its payload is encrypted if there is a `cipher`."""
        buffer, nonce = self._buffer, bytes(NONCE_NBYTES)
        if cipher is not None:
            nonce = cipher.new_nonce()
        fields = self._fields(created_ms, nonce, 0 if cipher is None else cipher.extra_nbytes, cipher is not None)
        if cipher is not None:
            payload = cipher.encrypt(buffer[HEADER_NBYTES:].data, nonce, fields)
            buffer = np.empty(HEADER_NBYTES + len(payload), np.uint8)
            buffer[HEADER_NBYTES:] = np.frombuffer(payload, np.uint8)
        record = buffer.data
        checked = fields + xxh3_64_digest(fields)
        record[: len(checked)] = checked
        record[len(checked) : HEADER_NBYTES] = _checksum(record)
        return record

    def _fields(self, created_ms: int, nonce: bytes, extra_nbytes: int, is_encrypted: bool) -> bytes:
        label, body_nbytes = self.label, self._buffer.nbytes - self._start
        return _FIELDS.pack(
            *(MAGIC, VERSION, label.kind, label.group, is_encrypted, label.num_tokens),
            *(len(label.tokens) // TOKEN_NBYTES, body_nbytes),
            *(self._buffer.nbytes - HEADER_NBYTES + extra_nbytes, created_ms),
            *(label.identity, label.namespace, label.name, label.parent, label.tenant, nonce),
        )


class Record(NamedTuple):
    """A record that was read: its own `tokens`, and the bytes of its pages."""

    header: Header
    tokens: bytes
    body: memoryview

    def check_is(self, label: Label) -> None:
        """Raise PageRecordError, which names the field, unless it is what `label` says."""
        header = self.header
        for field in ("identity", "namespace", "tenant", "kind", "group", "name", "parent", "num_tokens"):
            if getattr(header, field) != getattr(label, field):
                raise PageRecordError(field, f"its {field} is not the one that was asked for")
        if self.tokens != label.tokens:
            raise PageRecordError("tokens", "its tokens are not those that were asked for")


def read_header(data: Bytes) -> Header:
    """What the header at the start of `data` says. Raises PageRecordError if there is none, or it is damaged."""
    if len(data) < HEADER_NBYTES:
        raise PageRecordError("length", f"{len(data)} bytes are too few for a header")
    head = bytes(data[:HEADER_NBYTES])
    magic, version, kind, group, is_encrypted, num_tokens, num_own, nbytes, payload, created, *digests = (
        _FIELDS.unpack_from(head)
    )
    identity, namespace, name, parent, tenant, nonce = digests
    if magic != MAGIC:
        raise PageRecordError("magic", "these bytes are no stored page")
    if version != VERSION:
        raise PageRecordError("version", f"it is of version {version}, and this Pagoda reads version {VERSION}")
    if head[_FIELDS.size :][:_CHECK_NBYTES] != xxh3_64_digest(head[: _FIELDS.size]):
        raise PageRecordError("header", "its header is damaged")
    return Header(
        *(identity, namespace, tenant, kind, group, name, parent, num_tokens, num_own, nbytes, payload, created),
        *(is_encrypted, nonce, head[-_CHECKSUM_NBYTES:]),
    )


def check_record(data: Bytes) -> Header:
    """The header of a record that is whole and undamaged. Raises PageRecordError for any other."""
    header = read_header(data)
    if len(data) != header.record_nbytes:
        raise PageRecordError("length", f"it has {len(data)} bytes and says that it has {header.record_nbytes}")
    if _checksum(data) != header.checksum:
        raise PageRecordError("checksum", "its bytes are damaged")
    return header


def read_record(data: Bytes, cipher: Cipher | None = None) -> Record:
    """Read a whole record. Raises PageRecordError if anything of it is not as its header says."""
    header = check_record(data)
    payload = memoryview(data)[HEADER_NBYTES:]
    if header.is_encrypted:
        if cipher is None:
            raise PageRecordError("key", "it is encrypted, and there is no key to read it with")
        payload = memoryview(cipher.decrypt(payload, header.nonce, bytes(data[: _FIELDS.size])))
    tokens_nbytes = header.num_own_tokens * TOKEN_NBYTES
    if len(payload) != tokens_nbytes + header.nbytes:
        raise PageRecordError("length", "its payload is not as long as its header says")
    return Record(header, bytes(payload[:tokens_nbytes]), payload[tokens_nbytes:])


def _checksum(data: Bytes) -> bytes:
    """Of a whole record but for the place where the checksum itself stands."""
    view = memoryview(data)
    digest = xxh3_128(view[: HEADER_NBYTES - _CHECKSUM_NBYTES])
    digest.update(view[HEADER_NBYTES:])
    return digest.digest()
