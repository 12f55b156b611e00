"""The side of llguidance: compiles grammars and says what may come next. Runs in a confined child.

Whatever a grammar makes of time and memory is the child's end, so there are no further limits here. What is kept is
kept to save time: where a sequence stands depends on its grammar and its tokens alone, and can be told again.
"""

from __future__ import annotations

from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from pagoda.structured.source import WHITESPACE
from pagoda.structured.vocabulary import Vocabulary

MAX_GRAMMARS = 64
MAX_SEQUENCES = 1024

Source = tuple[str, str]
# What may come next, as base64 of a bit for each token; whether the output is complete; what is wrong with it.
Reply = tuple[str, bool, str]


class Place(NamedTuple):
    """Where a sequence stands after so many tokens."""

    matcher: LLMatcher
    num_tokens: int


class Worker:
    """Grammars over one vocabulary, of which it is told what `Vocabulary` takes."""

    def __init__(self, vocabulary: tuple[str, int, Sequence[int], Sequence[int]]) -> None:
        self._vocabulary = Vocabulary(*vocabulary)
        wrapped = TokenizerWrapper(self._vocabulary)
        self._tokenizer = LLTokenizer(wrapped, eos_token=self._vocabulary.end_token_ids)
        self._vocabulary.greedy = self._tokenizer.greedy_tokenize
        self._compiled = lru_cache(MAX_GRAMMARS)(self._compile)
        self._places: OrderedDict[int, Place] = OrderedDict()

    def compile(self, source: Source) -> tuple[Reply, list[str]]:
        """What an output may begin with, and warnings. Raises ValueError for what is no grammar."""
        matcher = self._compiled(source)
        return self._reply(matcher.deep_copy()), matcher.get_grammar_warnings()

    def begin(self, told: tuple[int, Source, Sequence[int]]) -> None:
        """A sequence that has a grammar, and these tokens by now, is known by its number from now on."""
        number, source, tokens = told
        matcher = self._compiled(source).deep_copy()
        matcher.consume_tokens(list(tokens))
        self._keep(number, Place(matcher, len(tokens)))

    def advance(self, pushed: Sequence[tuple[int, int, int]]) -> list[Reply | None]:
        """What may follow one more token of each of these: (number, how many were before it, token).

        None for a sequence that is not known here as it was before.
        """
        return [self._advance(*each) for each in pushed]

    def _advance(self, number: int, num_before: int, token: int) -> Reply | None:
        place = self._places.pop(number, None)
        if place is None or place.num_tokens != num_before:
            return None
        place.matcher.consume_token(token)
        self._keep(number, Place(place.matcher, num_before + 1))
        return self._reply(place.matcher)

    def _keep(self, number: int, place: Place) -> None:
        self._places[number] = place
        if len(self._places) > MAX_SEQUENCES:
            self._places.popitem(last=False)

    def _reply(self, matcher: LLMatcher) -> Reply:
        self._vocabulary.problem = ""
        mask = matcher.compute_bitmask()
        if matcher.is_error():  # the mask would allow the end alone
            return "", False, self._vocabulary.problem or matcher.get_error()
        return b64encode(mask).decode(), matcher.is_stopped(), ""

    def _compile(self, source: Source) -> LLMatcher:
        kind, text = source
        grammar = GRAMMARS[kind](text)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher


def _from_schema(schema: str) -> str:
    return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": WHITESPACE})


GRAMMARS: dict[str, Callable[[str], str]] = {
    "json": _from_schema,
    "json_object": _from_schema,
    "regex": LLMatcher.grammar_from_regex,
    "choice": LLMatcher.grammar_from_lark,
    "grammar": LLMatcher.grammar_from_lark,
}
