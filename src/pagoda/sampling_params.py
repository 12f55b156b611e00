"""How tokens are chosen and when a request ends, in vLLM's names."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pagoda.checks import as_float, is_number, is_whole, shown
from pagoda.errors import InvalidSamplingError, StructuredOutputError

MAX_LOGPROBS = 1000
MAX_COUNT = 2**31 - 1
MAX_STOP_LENGTH = 256
ABOVE_ZERO = math.ulp(0.0)


@dataclass(frozen=True, kw_only=True)
class StructuredOutputs:
    """The form of an output: exactly one of these. Raises StructuredOutputError for none or several.

    json: a JSON schema, as a dictionary or as text. json_object: any JSON object.
    regex: a regular expression that the whole output matches. choice: one of these texts.
    grammar: a context-free grammar in the Lark syntax of llguidance.
    """

    json: Mapping[str, Any] | str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: Collection[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        for name, kinds, wanted in (
            ("json", (Mapping, str), "a JSON schema, as a dictionary or as text"),
            ("json_object", (bool,), "True or False"),
            ("regex", (str,), "text"),
            ("choice", (Collection,), "a list of texts"),
            ("grammar", (str,), "text"),
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kinds):
                raise StructuredOutputError(f"{name} is {shown(value)}; it must be {wanted}.")
        if len(self._given) != 1:
            names = ", ".join(self._given) or "none"
            raise StructuredOutputError(
                f"structured_outputs has {names}; give one of json, json_object, regex, choice and grammar."
            )
        if self.choice is not None and not (_are_texts(self.choice) and len(self.choice) and all(self.choice)):
            raise StructuredOutputError("choice must be a list of texts, none of them empty.")
        if "" in (self.regex, self.grammar):
            raise StructuredOutputError(f"{self.kind} is empty; leave it out for output in any form.")

    @property
    def kind(self) -> str:
        """The name of what is given."""
        return self._given[0]

    @property
    def _given(self) -> list[str]:
        return [name for name, value in vars(self).items() if value is not None and value is not False]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling of one request. Raises InvalidSamplingError for a value out of range or of another type.

    n: how many samples; the prompt is computed once.
    temperature: 0 is greedy.
    top_k: 0 or -1 keeps every token. top_p, min_p: nucleus sampling (arXiv 1904.09751) and min-p (arXiv 2407.01082).
    presence_penalty, frequency_penalty: subtracted for tokens generated so far (OpenAI's definition).
    repetition_penalty: divides positive and multiplies negative logits of tokens seen so far (arXiv 1909.05858).
    logit_bias: added to the logits of these token ids.
    seed: the same seed gives the same text, whatever else is running.
    stop: strings (of at most 256 characters) that end the text before them; stop_token_ids: ids that end it.
    max_tokens: None generates up to the context limit; 0 computes and keeps the prompt.
    logprobs: report the log-probability of each chosen token and of this many most likely ones.
    prompt_logprobs: the same of each prompt token but the first; the whole prompt is computed for it.
    structured_outputs: the form that the output has; it ends when nothing can follow, whatever min_tokens says.
    kv_compression: which tokens of the sequence are kept, as the option of the engine says it; None is what that says.
    sparse_attention: how much of its pages the tokens read that are generated, in the same way.
    context_full: what becomes of it where the context ends, in the same way; memory_full: where pages are short.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | Collection[str] = ()
    stop_token_ids: Collection[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None
    kv_compression: str | None = None
    sparse_attention: str | None = None
    context_full: str | None = None
    memory_full: str | None = None

    def __post_init__(self) -> None:
        for name, nothing in (("stop", ()), ("stop_token_ids", ()), ("logit_bias", {})):
            if getattr(self, name) is None:  # as vLLM takes it
                self._set(name, nothing)
        for limits in NUMBERS:
            self._set(limits.name, limits.checked(getattr(self, limits.name)))
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            if type(getattr(self, name)) is not bool:
                raise InvalidSamplingError(f"{name} is {shown(getattr(self, name))}; it must be True or False.")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidSamplingError(f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens}).")
        self._check_stops()
        self._check_logit_bias()
        for name in ("kv_compression", "sparse_attention", "context_full", "memory_full"):
            if not isinstance(getattr(self, name), str | None):
                raise InvalidSamplingError(f"{name} is {shown(getattr(self, name))}; give text, as the option has it.")
        if self.structured_outputs is not None and not isinstance(self.structured_outputs, StructuredOutputs):
            given = shown(self.structured_outputs)
            raise InvalidSamplingError(f"structured_outputs is {given}; give StructuredOutputs(json=...) or another.")

    def _set(self, name: str, value: Any) -> None:
        """Numbers and collections are Python's own from now on: others reckon, and change, in ways of their own."""
        object.__setattr__(self, name, value)

    def _check_stops(self) -> None:
        if not isinstance(self.stop, str) and not _are_texts(self.stop):
            given = shown(self.stop)
            raise InvalidSamplingError(f"stop is {given}; it must be a string or a list of them, none of them empty.")
        self._set("stop", str(self.stop) if isinstance(self.stop, str) else _own(self.stop, str))
        if "" in self.stop_strings:
            raise InvalidSamplingError("stop has an empty string; leave it out or give at least one character.")
        if any(len(text) > MAX_STOP_LENGTH for text in self.stop_strings):
            raise InvalidSamplingError(f"stop has a string of more than {MAX_STOP_LENGTH} characters; give fewer.")
        if not isinstance(self.stop_token_ids, Collection) or not all(map(is_whole, self.stop_token_ids)):
            raise InvalidSamplingError(f"stop_token_ids is {shown(self.stop_token_ids)}; it must be a list of ids.")
        self._set("stop_token_ids", _own(self.stop_token_ids, int))

    def _check_logit_bias(self) -> None:
        if not isinstance(self.logit_bias, Mapping) or not all(
            is_whole(token) and is_number(bias) for token, bias in self.logit_bias.items()
        ):
            raise InvalidSamplingError(f"logit_bias is {shown(self.logit_bias)}; it must map token ids to numbers.")
        self._set("logit_bias", {int(token): as_float(bias) for token, bias in self.logit_bias.items()})
        if not all(map(math.isfinite, self.logit_bias.values())):
            raise InvalidSamplingError("logit_bias has a value that is not finite; use -100 to ban a token.")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def has_penalties(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @property
    def truncates(self) -> bool:
        """Whether only the most likely tokens may be drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def edits_logits(self) -> bool:
        """Whether anything but temperature and truncation changes the logits."""
        return bool(self.has_penalties or self.logit_bias or self.min_tokens)


@dataclass(frozen=True)
class _Number:
    """What the parameter `name` may be, from `low` to `high`; None as well if it `may_be_none`."""

    name: str
    low: float
    high: float
    is_whole: bool = True
    may_be_none: bool = False

    def checked(self, value: Any) -> float | None:
        """`value` as Python's own number. Raises InvalidSamplingError unless it is one of these."""
        if value is None and self.may_be_none:
            return None
        if not (is_whole if self.is_whole else is_number)(value):
            wanted = "a whole number" if self.is_whole else "a number"
            raise InvalidSamplingError(f"{self.name} is {shown(value)}; it must be {wanted}.")
        number = int(value) if self.is_whole else as_float(value)
        if not self.low <= number <= self.high:
            least = "above 0" if self.low == ABOVE_ZERO else f"at least {self.low}"
            most = f" and at most {self.high}" if self.high < sys.float_info.max else " and finite"
            raise InvalidSamplingError(f"{self.name} is {shown(value)}; it must be {least}{most}.")
        return number


NUMBERS = (
    _Number("n", 1, MAX_COUNT),
    _Number("temperature", 0, sys.float_info.max, is_whole=False),
    _Number("top_k", -1, MAX_COUNT),
    _Number("top_p", ABOVE_ZERO, 1, is_whole=False),
    _Number("min_p", 0, 1, is_whole=False),
    _Number("presence_penalty", -2, 2, is_whole=False),
    _Number("frequency_penalty", -2, 2, is_whole=False),
    _Number("repetition_penalty", ABOVE_ZERO, sys.float_info.max, is_whole=False),
    _Number("seed", -(2**63), 2**64 - 1, may_be_none=True),
    _Number("min_tokens", 0, MAX_COUNT),
    _Number("max_tokens", 0, MAX_COUNT, may_be_none=True),
    _Number("logprobs", 0, MAX_LOGPROBS, may_be_none=True),
    _Number("prompt_logprobs", 0, MAX_LOGPROBS, may_be_none=True),
)


def _own(values: Collection[Any], kind: Callable[[Any], Any]) -> Collection[Any]:
    """A copy that nobody else changes, of values as `kind` has them; a tuple stays one."""
    return tuple(map(kind, values)) if isinstance(values, tuple) else [kind(value) for value in values]


def _are_texts(values: Any) -> bool:
    """Whether it is a collection of texts, and not one text."""
    return isinstance(values, Collection) and not isinstance(values, str) and all(isinstance(e, str) for e in values)
