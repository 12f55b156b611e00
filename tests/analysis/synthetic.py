"""Traces like real ones: conversations that grow turn by turn behind a few system prompts, mixed in time."""

from __future__ import annotations

import json
import random
from pathlib import Path

from pagoda.analysis.traces.reading import ReadOptions, read_trace

BLOCK = 512


def block_rows(num_requests: int, seed: int = 0) -> list[dict]:
    """Rows as Mooncake's."""
    draw = random.Random(seed)
    fresh = iter(range(10**9)).__next__
    systems = [[fresh() for _ in range(draw.randrange(1, 4))] for _ in range(3)]
    talks: list[list[int]] = []
    rows = []
    for number in range(num_requests):
        if talks and draw.random() < 0.6:
            talk = draw.choice(talks[-12:])
        else:
            talk = [*draw.choice(systems)]
            talks.append(talk)
        talk += [fresh() for _ in range(draw.randrange(1, 5))]
        rest = draw.randrange(BLOCK)
        hashes = [*talk, fresh()] if rest else talk
        length = len(talk) * BLOCK + rest
        rows.append({"timestamp": 100 * number, "input_length": length, "output_length": 9, "hash_ids": [*hashes]})
    return rows


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def no_tokens() -> None:
    raise AssertionError("the trace has no text")


def read(path: Path, **options):
    return read_trace(path, ReadOptions(**{"tokens": no_tokens, **options}))
