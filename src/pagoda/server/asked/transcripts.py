"""Remembers the tokens of what models wrote, for when clients send it back as text.

A text can be cut into tokens in several ways, and a model need not choose the tokenizer's. What comes back is known by
a digest of all the text up to its end, and keeps the tokens that it was written in: then every page of them is hit.
No text is kept.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from pagoda.detokenizer import REPLACEMENT
from pagoda.outputs import CompletionOutput
from pagoda.prompts import ReadPrompt
from pagoda.server.answered.latest import Latest
from pagoda.server.ground.messages import Scope

DIGEST_NBYTES = 16
MOST_REMEMBERED = 4096
MOST_REMEMBERED_NBYTES = 64 << 20


class Known(NamedTuple):
    """The beginning of a text that was written in these tokens; its characters are counted.

    `digest` is of that text alone: whoever has the tokens, too, may have it recalled again.
    """

    num_characters: int
    token_ids: Sequence[int]
    digest: str = ""


class Transcripts:
    """Texts that ended where a turn ends: in chat templates, one of the tokens `eos_token_ids` follows."""

    def __init__(self, tokenizer: Any, eos_token_ids: Collection[int]) -> None:
        self._special = frozenset(tokenizer.all_special_ids) | frozenset(eos_token_ids)
        ends = [token for token in eos_token_ids if token in tokenizer.all_special_ids]
        self._end = re.compile("|".join(map(re.escape, tokenizer.convert_ids_to_tokens(ends)))) if ends else None
        self._tokens = Latest[Sequence[int]](MOST_REMEMBERED, MOST_REMEMBERED_NBYTES)

    def remember(self, scope: Scope, prompt: ReadPrompt, answer: CompletionOutput) -> None:
        """An answer has ended. One whose tokens are not just its text is left to the tokenizer."""
        written = list(answer.token_ids)
        while written and written[-1] in self._special:
            written.pop()
        is_plain = self._special.isdisjoint(written) and REPLACEMENT not in answer.text
        if prompt.text is None or not is_plain or answer.stop_reason is not None:
            return
        tokens = array("i", [*prompt.token_ids, *written])
        digest = _new_digest()
        digest.update((prompt.text + answer.text).encode())
        self.restore(scope, digest.hexdigest(), tokens)

    def restore(self, scope: Scope, digest: str, token_ids: array[int]) -> None:
        """A text of that digest was written in these tokens, as `recall` has told once."""
        self._tokens.put(scope.tenant, _key(scope, digest), token_ids, token_ids.itemsize * len(token_ids))

    def recall(self, scope: Scope, text: str) -> list[Known]:
        """The beginnings of `text` that were written here, the shortest first."""
        found = []
        digest, start = _new_digest(), 0
        for end in self._end.finditer(text) if self._end is not None else ():
            digest.update(text[start : end.start()].encode())
            start = end.start()
            told = digest.copy().hexdigest()
            tokens = self._tokens.find(scope.tenant, _key(scope, told))
            if tokens is not None:
                found.append(Known(start, tokens, told))
        return found


def _new_digest() -> Any:
    return blake2b(digest_size=DIGEST_NBYTES)


def _key(scope: Scope, digest: str) -> str:
    salt = scope.cache_salt.encode(errors="surrogatepass")
    return blake2b(salt + b"\0" + digest.encode(), digest_size=DIGEST_NBYTES).hexdigest()
