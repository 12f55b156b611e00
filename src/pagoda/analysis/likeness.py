"""Whether one prompt is an edit of another: how much of their own words they share, wherever the words stand.

What the chat template writes into every prompt does not count, nor do spaces, marks and case, which edits change.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pagoda.analysis.difference import num_common
from pagoda.analysis.prompt import Prompt, Section, SectionKind
from pagoda.cache.prefix.keys import common_tokens, token_key

# As many letters that both begin with are no chance: about as many as 16 tokens have.
LEAST_OPENING = 64
LEAST_SHARE = 0.25
# Unrelated texts share words, and seldom three or four in a row.
WINDOW, LEAST_WINDOW, WINDOWS_OF_SHORT = 16, 6, 4
NO_LETTER = re.compile(r"[\W_]+")

Letters = str | tuple[int, ...]


@dataclass(frozen=True)
class Likeness:
    """Of a prompt and one that came before it."""

    earlier: Prompt
    later: Prompt

    @property
    def is_edit(self) -> bool:
        """Whether one was made of the other, as far as that can be told."""
        return self.begins_alike or self.agrees

    @cached_property
    def begins_alike(self) -> bool:
        """Both begin with the same words, or one begins with all of the other."""
        shorter = min(len(_own(self.earlier)), len(_own(self.later)))
        return shorter >= LEAST_WINDOW and self._num_opening >= min(shorter, LEAST_OPENING)

    @cached_property
    def agrees(self) -> bool:
        """Enough of the shorter one stands somewhere in the longer one."""
        shorter, longer = sorted((_own(self.earlier), _own(self.later)), key=len)
        size = min(WINDOW, max(len(shorter) // WINDOWS_OF_SHORT, LEAST_WINDOW))
        windows = _windows(shorter, size)
        return bool(shorter) and len(windows & _windows(longer, size)) >= LEAST_SHARE * len(windows)

    @property
    def _num_opening(self) -> int:
        """How many letters both begin with."""
        if not self.later.text:
            return common_tokens(token_key(self.earlier.token_ids), token_key(self.later.token_ids))
        place = num_common(self.earlier.text, self.later.text)
        sections = self.later.sections or (self.later.section_at(0),)
        return len(_letters("".join(self.later.text[each.start : min(each.end, place)] for each in sections)))


def _own(prompt: Prompt) -> Letters:
    """What the prompt has of its own; tokens where it has no text."""
    if not prompt.text:
        return tuple(prompt.token_ids)
    sections = prompt.sections or (prompt.section_at(0),)
    return _letters("".join(_words(prompt, each) for each in sections))


def _words(prompt: Prompt, section: Section) -> str:
    """Of tools their definitions alone: around them templates say how to call them."""
    if section.kind is SectionKind.TOOLS and prompt.tools:
        return json.dumps(list(prompt.tools), ensure_ascii=False, default=repr)
    return prompt.text[section.start : section.end]


def _letters(text: str) -> str:
    return NO_LETTER.sub("", unicodedata.normalize("NFKD", text).casefold()) or text


def _windows(letters: Letters, size: int) -> set[Sequence[str | int]]:
    return {letters[start : start + size] for start in range(max(len(letters) - size + 1, 1))}
