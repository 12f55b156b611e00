"""Rows whose prompts are hashes of blocks, as Mooncake's are: equal hashes, equal tokens from the start to there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagoda.analysis.traces.fields import OUTPUT_LENGTHS, PROMPT_LENGTHS, LineError, Row, length, seconds, tenant
from pagoda.analysis.traces.trace import Numbers, TracedRequest
from pagoda.checks import is_whole, shown
from pagoda.errors import TraceError

USUAL_TOKENS = 512  # of a block of Mooncake's
POSSIBLE_TOKENS = (USUAL_TOKENS, *(1 << bits for bits in range(13) if 1 << bits != USUAL_TOKENS))


class BlockReader:
    """Makes requests of rows of blocks of `block_tokens`. `timestamps_per_second` tells what timestamps mean."""

    def __init__(self, block_tokens: int, timestamps_per_second: float) -> None:
        self._block_tokens = block_tokens
        self._per_second = timestamps_per_second
        self._numbers = Numbers()
        self._num_unhashed = 0

    def read(self, line: int, row: Row) -> TracedRequest:
        num_prompt_tokens = _prompt_length(row)
        hashes = _hashes(row)
        most = -(-num_prompt_tokens // self._block_tokens)
        if len(hashes) > most:
            raise LineError(
                f"{len(hashes)} hash_ids are too many for {num_prompt_tokens} tokens in blocks of "
                f"{self._block_tokens}; say with --trace-block how many tokens a block has"
            )
        prompt = self._numbers.of([*hashes, *self._unhashed(most - len(hashes))])
        return TracedRequest(
            line,
            num_prompt_tokens,
            length(row, OUTPUT_LENGTHS) or 0,
            prompt,
            prompt,
            seconds(row, self._per_second),
            tenant(row),
        )

    def _unhashed(self, num_blocks: int) -> list[Any]:
        """What stands for blocks that have no hash, as the last ones of some traces, and are found by nobody."""
        start = self._num_unhashed
        self._num_unhashed += num_blocks
        return [("unhashed", number) for number in range(start, self._num_unhashed)]


def find_block_tokens(rows: Sequence[Row]) -> int:
    """How many tokens a block has, by the lengths of prompts and how many hashes they have.

    The last block of a prompt has a hash even if it is not full; in some traces it has none. Of sizes that explain as
    many rows the one with a hash for every block is preferred. Rows without hashes tell nothing. Raises TraceError if
    no size explains most of the rows.
    """
    pairs = [pair for row in rows if (pair := _lengths(row)) is not None and pair[1]]

    def explained(size: int) -> tuple[int, int]:
        whole = sum(num_hashes == -(-num_tokens // size) for num_tokens, num_hashes in pairs)
        cut = sum(num_hashes == num_tokens // size and num_tokens % size > 0 for num_tokens, num_hashes in pairs)
        return whole + cut, whole

    size = max(POSSIBLE_TOKENS, key=explained)
    if pairs and explained(size)[0] * 2 <= len(pairs):
        raise TraceError("Lengths and hash_ids fit no size of blocks; say with --trace-block how many tokens one has.")
    return size


def _lengths(row: Row) -> tuple[int, int] | None:
    try:
        return _prompt_length(row), len(_hashes(row))
    except LineError:
        return None


def _prompt_length(row: Row) -> int:
    num_tokens = length(row, PROMPT_LENGTHS)
    if num_tokens is None:
        raise LineError("it has no input_length")
    if not num_tokens:
        raise LineError("its prompt is empty")
    return num_tokens


def _hashes(row: Row) -> list[Any]:
    hashes = row["hash_ids"]
    if not isinstance(hashes, list):
        raise LineError(f"hash_ids is {shown(hashes)}; it must be a list")
    wrong = next((each for each in hashes if not (is_whole(each) or isinstance(each, str))), None)
    if wrong is not None or None in hashes:
        raise LineError(f"hash_ids has {shown(wrong)}; they must be numbers or text")
    return hashes
