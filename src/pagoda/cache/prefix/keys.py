"""Runs of token ids as bytes: what nodes of the prefix tree are found by."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

TOKEN_TYPE = "i"
TOKEN_NBYTES = array(TOKEN_TYPE).itemsize


def token_key(tokens: Sequence[int]) -> bytes:
    """The key of a run of token ids."""
    return array(TOKEN_TYPE, tokens).tobytes()


def key_tokens(key: bytes) -> list[int]:
    """The token ids of a key."""
    tokens = array(TOKEN_TYPE)
    tokens.frombytes(key)
    return tokens.tolist()


def common_tokens(left: bytes, right: bytes) -> int:
    """How many leading tokens two keys share: the highest bit of their difference is in the first that differs."""
    size = min(len(left), len(right))
    difference = int.from_bytes(left[:size], "big") ^ int.from_bytes(right[:size], "big")
    return (size - (difference.bit_length() + 7) // 8) // TOKEN_NBYTES
