"""Output in a form that was asked for: JSON, a regular expression, a choice or a grammar, enforced by llguidance.

Compiles what `StructuredOutputs` says to masks over the tokenizer's vocabulary. Knows a tokenizer and the tokens that
end a sequence; knows no requests. llguidance is an optional dependency, imported when it is first needed.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pagoda.engine.constraint import Constraint
from pagoda.errors import StructuredOutputError, TokenizerRequiredError
from pagoda.sampling_params import StructuredOutputs

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

logger = logging.getLogger(__name__)

# Compiled grammars that are kept for requests to come.
MAX_GRAMMARS = 64
# Of what a grammar is compiled from: this takes seconds, in which no other prompt of a server is read.
MAX_SOURCE_LENGTH = 256 << 10
# Between the parts of JSON: a space, or a new line with its indentation. Without a limit a weak model writes only that.
WHITESPACE = r" |\r?\n[ \t]{0,20}"
MAX_MESSAGE_LENGTH = 300


class GrammarCompiler:
    """Makes constraints for a model with `vocab_size` tokens, of which `end_token_ids` end a sequence."""

    def __init__(self, tokenizer: Any, vocab_size: int, end_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_token_ids = end_token_ids
        self._compiled = lru_cache(MAX_GRAMMARS)(self._compile)

    def compile(self, wanted: StructuredOutputs | None) -> Constraint | None:
        """What enforces `wanted`, None if nothing is. Raises a RequestError that names what is wrong with it."""
        if wanted is None:
            return None
        source = _source(wanted)
        if len(source) > MAX_SOURCE_LENGTH:
            raise StructuredOutputError(
                f"{wanted.kind} has {len(source)} characters, of at most {MAX_SOURCE_LENGTH}; ask for a simpler form."
            )
        return self._compiled(wanted.kind, source)

    def _compile(self, kind: str, source: str) -> Grammar:
        llguidance = _import_llguidance()
        vocabulary, limits = self._vocabulary, llguidance.LLParserLimits(verbose_errors=False)
        try:
            grammar = GRAMMARS[kind](llguidance.LLMatcher, source)
            matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
        except ValueError as error:
            raise StructuredOutputError(f"{kind} cannot be enforced: {_one_line(str(error))}") from error
        if matcher.is_error():
            raise StructuredOutputError(f"{kind} cannot be enforced: {_one_line(matcher.get_error())}")
        for warning in matcher.get_grammar_warnings():
            logger.warning("%s: %s", kind, _one_line(warning))
        return Grammar(matcher, None if self._end_token_ids else self._no_end)

    @property
    def _no_end(self) -> int:
        """What llguidance is told to be the end where no token is; it is never allowed."""
        special = self._tokenizer.all_special_ids
        return int(min(special) if special else max(self._tokenizer.get_vocab().values()))

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        """The bytes of every token; takes a second for a large vocabulary."""
        _import_llguidance()
        from llguidance.hf import from_tokenizer

        if self._tokenizer is None:
            raise TokenizerRequiredError("structured_outputs are about text; this LLM was made without a tokenizer.")
        end = sorted(self._end_token_ids) or [self._no_end]
        size = max(self._vocab_size, *(token + 1 for token in self._tokenizer.get_vocab().values()))
        try:
            return from_tokenizer(self._tokenizer, n_vocab=size, eos_token=end)
        except ValueError as error:
            raise StructuredOutputError(f"This tokenizer cannot have structured_outputs: {error}.") from error


class Grammar:
    """A compiled grammar: the `Constraint` of a request. It never allows the `banned` token."""

    def __init__(self, matcher: LLMatcher, banned: int | None) -> None:
        self._matcher = matcher
        self._penalties = _penalties_of_bytes()
        self._banned = banned

    def new(self) -> GrammarMatcher:
        return GrammarMatcher(self._matcher.deep_copy(), self._penalties, self._banned)


class GrammarMatcher:
    """Where one sequence stands in its grammar: a `Matcher`."""

    def __init__(self, matcher: LLMatcher, penalties: torch.Tensor, banned: int | None) -> None:
        self._matcher = matcher
        self._penalties = penalties
        self._banned = banned

    def mask(self, logits: torch.Tensor) -> None:
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():  # one of llguidance's limits; the mask would allow the end alone
            message = _one_line(self._matcher.get_error())
            raise StructuredOutputError(f"The output cannot be held to its grammar any longer: {message}")
        # Ten times faster than to fill by a mask of booleans.
        logits += self._penalties.index_select(0, torch.from_numpy(mask.astype(np.int32))).flatten()[: len(logits)]
        if self._banned is not None:
            logits[self._banned] = -math.inf

    def push(self, token: int) -> None:
        self._matcher.consume_token(token)

    @property
    def is_done(self) -> bool:
        return self._matcher.is_stopped() and not self._matcher.is_error()


def _penalties_of_bytes() -> torch.Tensor:
    """What each byte of a mask adds to eight logits, fp32 [256, 8]: 0 where its bit is set, else -inf."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return torch.where(torch.from_numpy(bits).bool(), 0.0, -math.inf)


def _from_schema(matcher: type[LLMatcher], schema: str) -> str:
    return matcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": WHITESPACE})


def _from_regex(matcher: type[LLMatcher], pattern: str) -> str:
    return matcher.grammar_from_regex(pattern)


def _from_lark(matcher: type[LLMatcher], grammar: str) -> str:
    return matcher.grammar_from_lark(grammar)


GRAMMARS: dict[str, Callable[[type[LLMatcher], str], str]] = {
    "json": _from_schema,
    "json_object": _from_schema,
    "regex": _from_regex,
    "choice": _from_lark,
    "grammar": _from_lark,
}


def _source(wanted: StructuredOutputs) -> str:
    """What is to be compiled, as text."""
    if wanted.json is not None:
        return _schema(wanted.json)
    if wanted.choice is not None:
        return "start: " + " | ".join(json.dumps(text) for text in wanted.choice)
    return wanted.regex or wanted.grammar or '{"type": "object"}'


def _schema(given: Any) -> str:
    try:
        schema = json.loads(given) if isinstance(given, str) else given
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise StructuredOutputError(f"json is not a JSON schema: {error}.") from error
    if not isinstance(schema, dict):
        raise StructuredOutputError("json is not a JSON schema: give an object.")
    return text


def _import_llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise StructuredOutputError(
            'structured_outputs need llguidance, which is not installed: pip install "pagoda-kv[structured]".'
        ) from error
    return llguidance


def _one_line(message: str) -> str:
    return " ".join(message.split())[:MAX_MESSAGE_LENGTH].removesuffix(".") + "."
