"""Where two prompts part: the first token and the first character that differ, and the section that these are in.

Compares, and judges nothing: what the difference means is for `recognition.py` to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pagoda.analysis.prompt import Prompt, Section, SectionKind
from pagoda.cache.prefix.keys import common_tokens, token_key

BLOCK = 64  # characters; fewer are the same by chance
MOST_COMPARED = 1 << 18
TEMPLATE_KINDS = (SectionKind.MARKER, SectionKind.GENERATION)


@dataclass(frozen=True)
class Difference:
    """Of a prompt that was computed `earlier`, and one that came `later`."""

    earlier: Prompt
    later: Prompt

    @cached_property
    def num_common_tokens(self) -> int:
        """Also the index of the first token that differs, if there is one."""
        return common_tokens(token_key(self.earlier.token_ids), token_key(self.later.token_ids))

    @property
    def is_continued(self) -> bool:
        """Whether one of the two has all tokens of the other."""
        return self.num_common_tokens == min(len(self.earlier.token_ids), len(self.later.token_ids))

    @cached_property
    def place(self) -> int:
        """How many leading characters the texts share."""
        return num_common(self.earlier.text, self.later.text)

    @property
    def is_in_tokens_alone(self) -> bool:
        """Whether one text has all of the other, and is cut into tokens in another way all the same."""
        return not self.is_continued and self.place == min(len(self.earlier.text), len(self.later.text))

    @cached_property
    def section(self) -> Section:
        """Of the later prompt, but for what only the earlier one has there."""
        earlier, later = self.sections
        return earlier if later.kind in TEMPLATE_KINDS and earlier.kind not in TEMPLATE_KINDS else later

    @cached_property
    def sections(self) -> tuple[Section, Section]:
        """Around the place where the texts part, in the earlier and in the later one."""
        earlier, later = self.earlier.section_at(self.place), self.later.section_at(self.place)
        if earlier.end == later.end == self.place:  # both are over: what differs comes after them
            return self.earlier.gap_at(self.place), self.later.gap_at(self.place)
        return earlier, later

    @cached_property
    def edit(self) -> Edit:
        """What stands in both sections, as far as they are known."""
        earlier, later = self.sections
        start = min(max(earlier.start, later.start), self.place)
        return Edit(self.earlier.text[start : earlier.end], self.later.text[start : later.end], self.place - start)


@dataclass(frozen=True)
class Edit:
    """Two texts that share their first `place` characters."""

    earlier: str
    later: str
    place: int


def num_common(left: str, right: str) -> int:
    """How many leading characters two texts share."""
    size = min(len(left), len(right))
    if left[:size] == right[:size]:
        return size
    low, high = 0, size  # the first `low` are equal, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle)
    return low


def num_repeated(edit: Edit) -> int:
    """How many characters, in about, both texts have behind the place where they part, if only at other places."""
    earlier, later = (text[edit.place : edit.place + MOST_COMPARED] for text in (edit.earlier, edit.later))
    blocks = {earlier[start : start + BLOCK] for start in range(0, len(earlier) - BLOCK + 1, BLOCK)}
    found = blocks.intersection(later[start : start + BLOCK] for start in range(len(later) - BLOCK + 1))
    return len(found) * BLOCK
