"""A trial of a tokenizer, made in a child process that can be killed: it reads texts that are made to be hard for it.

Knows the library of tokenizers and what is in a tokenizer.json, neither torch nor transformers. Raises what the library
raises, and ValueError for what a right tokenizer does not do. Limits of time and memory are the caller's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import permutations
from time import process_time
from typing import Any, NamedTuple

from tokenizers import Tokenizer

PROBE_LENGTH = 8000
# A probe that takes this long is read again at some times the length, which may take as many times as long.
SLOW_SECONDS = 0.05
LONGER, MAX_SLOWER = 4, 10
# Tokens, and characters of the text that they are decoded to, for each character of a probe.
MAX_GROWTH = 64
DECODED_TOKENS = 1000

# Of which texts consist anyway, and one for each class of characters in an expression.
COMMON = ["a", " ", "1", "!", "\n", "é", "中", "A"]
CLASSES = {r"\s": " \t", r"\d": "7", r"\w": "b_", r"\p": "Zz٣¿", r"\S": "-", r"\W": "+", r"\D": "c", ".": "d"}
MAX_CHARACTERS, MAX_PAIRED = 32, 8
MAX_LITERALS = 16


def try_out(text: str) -> None:
    """Read probes by the tokenizer.json `text`."""
    try:
        _try_out(text)
    except Exception:
        raise
    except BaseException as panic:
        raise ValueError(str(panic)) from panic


def _try_out(text: str) -> None:
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for probe in _probes(json.loads(text)):
        seconds = _read(tokenizer, probe.text(PROBE_LENGTH))
        if seconds > SLOW_SECONDS and _read(tokenizer, probe.text(LONGER * PROBE_LENGTH)) > MAX_SLOWER * seconds:
            raise ValueError(f"the time to read {probe.repeated[:8]!r}... grows much faster than its length")


def _read(tokenizer: Any, probe: str) -> float:
    """The time it takes."""
    start = process_time()
    ids = tokenizer.encode(probe).ids
    if len(ids) > MAX_GROWTH * len(probe):
        raise ValueError(f"{probe[:8]!r}..., {len(probe)} characters, becomes {len(ids)} tokens")
    decoded = tokenizer.decode(ids[:DECODED_TOKENS], skip_special_tokens=False)
    if len(decoded) > MAX_GROWTH * (len(probe) + DECODED_TOKENS):
        raise ValueError(f"tokens of {probe[:8]!r}... become {len(decoded)} characters")
    return process_time() - start


class _Probe(NamedTuple):
    """A text of any length, hard to read where an expression has to look at all of it to see that it does not match."""

    repeated: str
    end: str = ""

    def text(self, length: int) -> str:
        return self.repeated * (length // len(self.repeated) + 1) + self.end


def _probes(values: Any) -> Iterator[_Probe]:
    """Runs of characters that the file is about, alone, before another one, and by turns; and what it replaces."""
    literals = [*dict.fromkeys(_literals(values))][:MAX_LITERALS]
    characters = [*dict.fromkeys([*_of_patterns(literals), *COMMON])][:MAX_CHARACTERS]
    # An expression may not even be tried where a character is missing that it needs.
    everything = "\0" + "".join(characters)
    for character in characters:
        yield from (_Probe(character, end) for end in ("", "!" if character != "!" else "?", everything))
    yield from (_Probe(first + second, everything) for first, second in permutations(characters[:MAX_PAIRED], 2))
    yield from map(_Probe, literals)


def _literals(values: Any) -> Iterator[str]:
    """Patterns, wherever they stand, and the longest pieces of the vocabulary."""
    pending = [part for name, part in values.items() if name not in ("model", "added_tokens")]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            yield from (each for each in part.get("pattern", {}).values() if each)
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    vocabulary = values["model"]["vocab"]
    pieces = [piece if isinstance(piece, str) else piece[0] for piece in vocabulary]
    yield from sorted(filter(None, pieces), key=len)[-2:]


def _of_patterns(literals: list[str]) -> Iterator[str]:
    """Characters that stand in patterns, and some of the classes that do."""
    for literal in literals:
        for name, some in CLASSES.items():
            yield from some if name in literal else ""
        yield from re.sub(r"\\.|[()\[\]{}|?*+^$.]", "", literal)[:MAX_CHARACTERS]
