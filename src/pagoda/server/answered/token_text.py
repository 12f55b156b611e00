"""Knows the text and the bytes of single tokens, as log-probabilities report them; joined, they are the text of all."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from pagoda.detokenizer import REPLACEMENT
from pagoda.tokenizing import decode

CACHED_TOKENS = 65536
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class TokenTexts:
    """Token ids to what they stand for: whole characters as text, pieces of one as their bytes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bytes = lru_cache(CACHED_TOKENS)(self._bytes)

    def text(self, token: int) -> str:
        """As OpenAI writes it: bytes that are no character are told apart as `bytes:\\xe2\\x80`."""
        raw = self.bytes(token)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _bytes(self, token: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # a vocabulary may be larger than its tokenizer
            return b""
        alone = decode(self._tokenizer, [token])
        if REPLACEMENT in alone:
            raw = _raw_bytes(piece)
            return raw if raw.decode("utf-8", "replace") == alone else alone.encode("utf-8")
        # The second of two reads as it does after others: the first of a text may lack its space.
        twice = decode(self._tokenizer, [token, token])
        return twice.removeprefix(alone).encode("utf-8")


def _raw_bytes(piece: str) -> bytes:
    """What a piece stands for that is no text by itself, in either way to write bytes."""
    found = BYTE_PIECE.fullmatch(piece)
    return bytes.fromhex(found[1]) if found else b"".join(BYTE_OF.get(character, b"") for character in piece)


def _byte_of() -> dict[str, bytes]:
    """GPT-2's alphabet, which writes each byte as a character that can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), ord("\xff") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    alphabet = {chr(byte): bytes([byte]) for byte in seen}
    return alphabet | {chr(256 + index): bytes([byte]) for index, byte in enumerate(hidden)}


BYTE_OF = _byte_of()
