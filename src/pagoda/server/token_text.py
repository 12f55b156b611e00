"""The text and the bytes of single tokens, as log-probabilities report them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

CACHED_TOKENS = 65536


class TokenTexts:
    """Token ids to what they stand for: whole characters as text, pieces of one as their bytes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_byte_level = "ByteLevel" in repr(getattr(backend, "decoder", None))
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
        if token in self._special:
            return str(piece).encode("utf-8")
        if self._is_byte_level:
            return b"".join(BYTE_OF.get(character, character.encode("utf-8")) for character in piece)
        if len(piece) == 6 and piece.startswith("<0x"):
            return bytes.fromhex(piece[3:5])
        return str(piece).replace("\u2581", " ").encode("utf-8")


def _byte_of() -> dict[str, bytes]:
    """GPT-2's alphabet, which writes each byte as a character that can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), ord("\xff") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    alphabet = {chr(byte): bytes([byte]) for byte in seen}
    return alphabet | {chr(256 + index): bytes([byte]) for index, byte in enumerate(hidden)}


BYTE_OF = _byte_of()
