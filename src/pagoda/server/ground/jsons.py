"""Writes values as JSON bytes."""

from __future__ import annotations

import json
from typing import Any

import orjson


def to_json(value: Any) -> bytes:
    """Fast; what only Python's own encoder takes (integers beyond 64 bits, half surrogates) is escaped by that."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()
