"""Encrypts records at rest: AES-256-GCM with a key from the environment.

A nonce is drawn at random for each record. With 96 bits, two of 2^32 records of one key share one with a probability of
2^-33 (NIST SP 800-38D allows no more of them): take a new key after 4 billion records, or 4 PiB of pages of 1 MiB.
Records of another key are misses. Lengths, names and counts of tokens in headers stay readable; changing them is
noticed. Page names are digests of tokens: who can guess a text can tell whether it is there.
"""

from __future__ import annotations

import base64
import os
from typing import Any

from pagoda.cache.tiers.record import NONCE_NBYTES, Bytes
from pagoda.errors import ConfigError, PageRecordError

KEY_NBYTES = 32
TAG_NBYTES = 16
HOW_TO_MAKE_ONE = "make one with: openssl rand -hex 32"


class AesGcmCipher:
    """A `record.Cipher`."""

    def __init__(self, key: bytes) -> None:
        self._aes: Any = _aes_gcm(key)

    @classmethod
    def from_text(cls, text: str) -> AesGcmCipher:
        """Of a key as people write it. Raises ConfigError if it is none."""
        return cls(read_key(text))

    @property
    def extra_nbytes(self) -> int:
        return TAG_NBYTES

    def new_nonce(self) -> bytes:
        return os.urandom(NONCE_NBYTES)

    def encrypt(self, payload: Bytes, nonce: bytes, fields: bytes) -> bytes:
        encrypted: bytes = self._aes.encrypt(nonce, payload, fields)
        return encrypted

    def decrypt(self, payload: Bytes, nonce: bytes, fields: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        try:
            decrypted: bytes = self._aes.decrypt(nonce, payload, fields)
        except (InvalidTag, ValueError):
            raise PageRecordError("key", "it was encrypted with another key") from None
        return decrypted


def cipher_of(text: str | None) -> AesGcmCipher | None:
    """Of a key as people write it; nothing is encrypted without one. Raises ConfigError if it is none."""
    return AesGcmCipher.from_text(text) if text else None


def read_key(text: str) -> bytes:
    """32 bytes, from hex or base64."""
    text = text.strip()
    for decode in (bytes.fromhex, _from_base64):
        try:
            key = decode(text)
        except ValueError:
            continue
        if len(key) == KEY_NBYTES:
            return key
    raise ConfigError(f"PAGODA_KV_KEY is no key of {KEY_NBYTES} bytes as hex or base64; {HOW_TO_MAKE_ONE}")


def _from_base64(text: str) -> bytes:
    """With the letters of URLs or the others, with padding or without."""
    text = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def _aes_gcm(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise ConfigError(
            "PAGODA_KV_KEY needs the package cryptography; install it with: pip install 'pagoda-kv[encryption]'"
        ) from None
    return AESGCM(key)
