"""How tokens are chosen and when a request ends, in vLLM's names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pagoda.errors import InvalidSamplingError, StructuredOutputError

MAX_LOGPROBS = 1000
MAX_COUNT = 2**31 - 1
MAX_STOP_LENGTH = 256


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
    choice: Sequence[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        if len(self._given) != 1:
            names = ", ".join(self._given) or "none"
            raise StructuredOutputError(
                f"structured_outputs has {names}; give one of json, json_object, regex, choice and grammar."
            )
        if self.choice is not None and (isinstance(self.choice, str) or not self.choice or not all(self.choice)):
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
    """Sampling of one request. Raises InvalidSamplingError for a value out of range.

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
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        ranges: tuple[tuple[str, float, float, float], ...] = (
            ("n", self.n, 1, MAX_COUNT),
            ("temperature", self.temperature, 0, math.inf),
            ("top_k", self.top_k, -1, MAX_COUNT),
            ("top_p", self.top_p, math.ulp(0.0), 1),
            ("min_p", self.min_p, 0, 1),
            ("presence_penalty", self.presence_penalty, -2, 2),
            ("frequency_penalty", self.frequency_penalty, -2, 2),
            ("repetition_penalty", self.repetition_penalty, math.ulp(0.0), math.inf),
            ("min_tokens", self.min_tokens, 0, MAX_COUNT),
            ("max_tokens", 1 if self.max_tokens is None else self.max_tokens, 0, MAX_COUNT),
            ("logprobs", self.logprobs or 0, 0, MAX_LOGPROBS),
            ("prompt_logprobs", self.prompt_logprobs or 0, 0, MAX_LOGPROBS),
        )
        for name, value, low, high in ranges:
            if not low <= value <= high or value == math.inf:
                least = "above 0" if low == math.ulp(0.0) else f"at least {low:g}"
                raise InvalidSamplingError(f"{name} is {value}; it must be {least} and at most {high:.10g}.")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidSamplingError(f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens}).")
        if any(not text for text in self.stop_strings):
            raise InvalidSamplingError("stop has an empty string; leave it out or give at least one character.")
        if any(len(text) > MAX_STOP_LENGTH for text in self.stop_strings):
            raise InvalidSamplingError(f"stop has a string of more than {MAX_STOP_LENGTH} characters; give fewer.")
        if not all(math.isfinite(bias) for bias in self.logit_bias.values()):
            raise InvalidSamplingError("logit_bias has a value that is not finite; use -100 to ban a token.")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def has_penalties(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @property
    def edits_logits(self) -> bool:
        """Whether anything but temperature and truncation changes the logits."""
        return bool(self.has_penalties or self.logit_bias or self.min_tokens)
