"""From token ids to text, one token at a time: whole characters, and nothing that a later token would change.

Knows a tokenizer's `decode` alone. That joins tokens as it likes: by what stands before them, by the bytes of a
character that several of them share, or by whole runs of such bytes, all of which one wrong byte spoils.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Any

from pagoda.tokenizing import decode, special_tokens

# What `decode` gives for bytes that do not (yet) make a character.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# A character has up to four bytes, so up to four tokens.
LONGEST_CHARACTER = 4

# Tokens decoded along with the new ones, for what they say about joining; of many the older half is dropped.
CONTEXT_TOKENS = 6
MOST_CONTEXT_TOKENS = 2 * CONTEXT_TOKENS

# Of many tokens that settle nothing, the last ones are kept.
MOST_PENDING_TOKENS = 64
KEPT_PENDING_TOKENS = 16


class Detokenizer:
    """The text of one sequence after its prompt.

    A window of tokens is decoded: the context, which begins and ends between characters and has been given out, and the
    pending tokens after it. Of the text of the window, `_given` has been given out.

    Special tokens may be skipped, but for those that are `shown`.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: Sequence[int],
        skip_special_tokens: bool = True,
        shown: Collection[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        # The tokenizer skips all special tokens or none, so with some that are shown the others are kept from it.
        self._skip_special_tokens = skip_special_tokens and not shown
        self._skipped = special_tokens(tokenizer) - set(shown) if skip_special_tokens and shown else set[int]()
        self._window: list[int] = []
        self._num_context = 0
        self._middle = 0  # where the context can be cut
        self._text = self._context_text = self._given = ""
        self._prompt_rest = ""  # what the prompt alone shows of a character that it may have begun
        self._begin(self._end_of([token for token in prompt if token not in self._skipped] if shown else prompt))

    def push(self, token: int) -> str:
        """Add a token; returns the text that it settles."""
        if token in self._skipped:
            return ""
        self._window.append(token)
        before, self._text = self._text, self._decode(self._window)
        if self._text == before and self._is_skipped(token):
            self._skipped.add(token)
            self._window.pop()
            return ""
        addition = self._settle(len(before))
        if self._num_pending > MOST_PENDING_TOKENS:
            self._shorten_pending()
        return self._without_prompt(addition)

    def finish(self) -> str:
        """No more tokens: bytes that never became a character are shown as such."""
        return self._without_prompt(self._rest())

    @property
    def _num_pending(self) -> int:
        return len(self._window) - self._num_context

    def _begin(self, tokens: list[int]) -> None:
        """Take the end of the prompt as context, and what it has of a character as pending."""
        text = self._decode(tokens)
        num_context = 0 if text.endswith(REPLACEMENT) else len(tokens)
        while num_context and self._decode(tokens[: num_context - 1]) == text:
            num_context -= 1
        if num_context:
            self._set_context(tokens[:num_context], text)
        for token in tokens[num_context:]:
            self.push(token)
        self._prompt_rest = self._rest()

    def _end_of(self, prompt: Sequence[int]) -> list[int]:
        """The last tokens of the prompt, from between two characters on, as many as show something."""
        num_tokens = CONTEXT_TOKENS
        while num_tokens < len(prompt):
            ends = [list(prompt[-size:]) for size in range(num_tokens, num_tokens - LONGEST_CHARACTER, -1)]
            for end in ends:
                text = self._decode(end)
                if text and not text.startswith(REPLACEMENT):
                    return end
            if self._decode(ends[0]):
                return ends[0]
            num_tokens *= 2
        return [token for token in prompt if not self._is_skipped(token)][-MOST_PENDING_TOKENS:]

    def _settle(self, length_before: int) -> str:
        # Where every byte shows as a REPLACEMENT, a text that becomes shorter ends with a character, U+FFFD itself.
        is_whole = not self._text.endswith(REPLACEMENT) or len(self._text) < length_before
        fits = self._text.startswith(self._given)
        if is_whole and fits:
            return self._settle_all()
        addition = self._settle_last(is_whole)
        if not addition and is_whole:
            addition = self._start_over()
        return addition or (self._settle_stable() if fits else self._settle_first())

    def _settle_all(self) -> str:
        """The window ends between characters."""
        addition = self._text[len(self._given) :]
        if addition:
            self._set_context(self._window, self._text)
        return addition

    def _settle_last(self, is_whole: bool) -> str:
        """The last tokens are a character if the pending ones before them are none."""
        if not is_whole and not self._text.endswith(2 * REPLACEMENT):
            return ""
        context = self._window[: self._num_context]
        for size in range(min(self._num_pending - 1, LONGEST_CHARACTER), 0, -1):
            last = self._window[-size:]
            text = self._decode(context + last)
            if text == self._context_text or not text.startswith(self._context_text):
                continue
            if text.endswith(REPLACEMENT) and (size < 3 or len(text) >= len(self._decode(context + last[:-1]))):
                continue
            if self._decode(self._window[self._num_context : -size]).endswith(REPLACEMENT):
                addition = self._pending_text(self._num_pending - size) + text[len(self._context_text) :]
                self._set_context(context + last, text)
                return addition
        return ""

    def _start_over(self) -> str:
        """The tokenizer contradicts what it said of the context: the pending tokens stand alone."""
        pending = self._window[self._num_context :]
        addition = self._pending_text(len(pending))
        if addition:
            self._set_context(pending, self._decode(pending))
        return addition

    def _settle_stable(self) -> str:
        """All but the bytes at the end that may yet become a character."""
        longest = len(self._text) - (LONGEST_CHARACTER - 1) if self._num_pending >= LONGEST_CHARACTER else 0
        length = max(longest, len(self._text.rstrip(REPLACEMENT)), len(self._given))
        addition = self._text[len(self._given) : length]
        self._given += addition
        return addition

    def _settle_first(self) -> str:
        """Wrong bytes have spoilt the context's: the first of them goes when it cannot become a character."""
        if self._num_pending < LONGEST_CHARACTER:
            return ""
        addition = self._pending_text(1)
        del self._window[self._num_context]
        self._given = self._context_text
        self._text = self._decode(self._window)
        return addition

    def _set_context(self, tokens: list[int], text: str) -> None:
        """All of the window is context, of which the older half goes when it is long."""
        if len(tokens) > MOST_CONTEXT_TOKENS:
            later_text = self._decode(tokens[self._middle :])
            if later_text:  # what stands before has to be seen
                tokens, text = tokens[self._middle :], later_text
            self._middle = len(tokens)
        elif len(tokens) <= CONTEXT_TOKENS:
            self._middle = len(tokens)
        self._window, self._num_context = tokens, len(tokens)
        self._text = self._context_text = self._given = text

    def _shorten_pending(self) -> None:
        rest = self._rest()
        del self._window[self._num_context : -KEPT_PENDING_TOKENS]
        self._text = self._decode(self._window)
        self._given = self._text.removesuffix(rest)

    def _rest(self) -> str:
        """What the window shows beyond what has been given out."""
        if self._text.startswith(self._given):
            return self._text[len(self._given) :]
        return self._pending_text(self._num_pending)

    def _pending_text(self, num_tokens: int) -> str:
        """What the first pending tokens show by themselves, beyond what has been given out."""
        text = self._decode(self._window[self._num_context :][:num_tokens])
        return text.removeprefix(self._given[len(self._context_text) :])

    def _without_prompt(self, addition: str) -> str:
        """Without what the prompt alone shows, as long as it is the same."""
        if not addition or not self._prompt_rest:
            return addition
        same = takewhile(lambda pair: pair[0] == pair[1], zip(addition, self._prompt_rest, strict=False))
        num_same = sum(1 for _ in same)
        self._prompt_rest = self._prompt_rest[num_same:] if num_same == len(addition) else ""
        return addition[num_same:]

    def _is_skipped(self, token: int) -> bool:
        """Whether the token is left out of every text, as special ones are if they are not asked for."""
        if not self._skip_special_tokens or self._decode([token]):
            return False
        return decode(self._tokenizer, [token]) != ""

    def _decode(self, tokens: list[int]) -> str:
        return decode(self._tokenizer, tokens, self._skip_special_tokens)
