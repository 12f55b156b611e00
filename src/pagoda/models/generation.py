"""What a checkpoint says of generating: tokens that start, end and never come, rules, and defaults of sampling.

Reads the values of generation_config.json, and of the configuration where that says nothing. What `generate()` of
transformers does with a value is done with it here, or it is named as one that cannot be honoured.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from pagoda.checks import is_whole, shown
from pagoda.errors import CorruptCheckpointError, InvalidSamplingError
from pagoda.models.decoder_config import decoder_config
from pagoda.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

# In vLLM's names, by those of transformers.
SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
# What cannot be honoured, and the values that ask for nothing.
UNKNOWN: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "encoder_repetition_penalty", "guidance_scale"), (1, 1.0)),
    **dict.fromkeys(("typical_p", "top_h"), (1, 1.0)),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "encoder_no_repeat_ngram_size", "diversity_penalty"), (0, 0.0)),
    **dict.fromkeys(("penalty_alpha", "dola_layers", "constraints", "force_words_ids", "sequence_bias"), ()),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config", "stop_strings"), ()),
}


@dataclass(frozen=True)
class Rules:
    """What may not come next, after the tokens of a sequence, the prompt's among them.

    bad_words: runs of tokens that are never completed, by their last token but one. no_repeat_ngram_size: no run of so
    many tokens comes twice. min_length, min_new_tokens: so many tokens, and new ones, come before an end.
    forced_second: the token after one alone. forced_end: the last one where `max_tokens` ends a sequence.
    """

    bad_words: Mapping[int, Sequence[tuple[int, ...]]] = field(default_factory=lambda: MappingProxyType({}))
    no_repeat_ngram_size: int = 0
    min_length: int = 0
    min_new_tokens: int = 0
    forced_second: int | None = None
    forced_end: int | None = None


NO_RULES = Rules()


@dataclass(frozen=True)
class GenerationTokens:
    """The tokens that end a sequence, those that a decoder with an encoder starts from, and those never generated.

    `banned_first` are not generated right after the prompt. `sampling` are fields of SamplingParams.
    """

    end: frozenset[int] = frozenset()
    start: tuple[int, ...] = ()
    banned: frozenset[int] = frozenset()
    banned_first: frozenset[int] = frozenset()
    rules: Rules = NO_RULES
    sampling: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(cls, settings: Mapping[str, Any], config: Any, stated: Mapping[str, Any] | None = None) -> GenerationTokens:
        """Of generation `settings` and a configuration, of which `stated` is what its file says, if it has one.

        Raises CorruptCheckpointError for values of no sense.
        """
        return _Reader(settings, config, stated).read()

    def with_end(self, tokens: Iterable[int], vocab_size: int) -> GenerationTokens:
        """These, with further tokens that end a sequence."""
        return replace(self, end=self.end | _known(tokens, vocab_size))

    @property
    def tokens_alone(self) -> GenerationTokens:
        """Without rules and defaults of sampling."""
        return replace(self, rules=NO_RULES, sampling=MappingProxyType({}))


class _Reader:
    def __init__(self, settings: Mapping[str, Any], config: Any, stated: Mapping[str, Any] | None) -> None:
        self._settings = settings
        self._config = config
        self._sources = (settings, decoder_config(config).to_dict(), config.to_dict())
        self._stated = self._sources if stated is None else (settings, *_whole_and_parts(stated))
        self._vocab_size = decoder_config(config).vocab_size

    def read(self) -> GenerationTokens:
        end = self._end()
        start = (self._first("decoder_start_token_id", "bos_token_id"), self._first("forced_bos_token_id"))
        # The end is no bad word, as in transformers.
        words = [word for word in self._bad_words() if len(word) > 1 or word[0] not in end]
        single = [word[0] for word in words if len(word) == 1]
        self._name_unknown()
        return GenerationTokens(
            end=end,
            start=tuple(token for token in start if token is not None) if self._config.is_encoder_decoder else (),
            banned=_known([*_tokens(self._settings, "suppress_tokens"), *single], self._vocab_size),
            banned_first=_known(_tokens(self._settings, "begin_suppress_tokens"), self._vocab_size),
            rules=self._rules([word for word in words if len(word) > 1]),
            sampling=self._sampling(),
        )

    def _end(self) -> frozenset[int]:
        """Every end that is stated; only without any the family's default, which may be of another vocabulary."""
        found = [[token for each in sources for token in _tokens(each, "eos_token_id")] for sources in self._both]
        return next((_known(tokens, self._vocab_size) for tokens in found if tokens), frozenset())

    @property
    def _both(self) -> tuple[tuple[Mapping[str, Any], ...], ...]:
        return self._stated, self._sources

    def _first(self, *names: str) -> int | None:
        """The token that is named first, under any of `names`."""
        found = (_tokens(source, name)[:1] for name in names for source in self._sources)
        return next((tokens[0] for tokens in found if tokens), None)

    def _rules(self, bad_words: list[tuple[int, ...]]) -> Rules:
        known: dict[int, list[tuple[int, ...]]] = {}
        for word in bad_words:
            if len(_known(word, self._vocab_size)) == len({*word}):
                known.setdefault(word[-2], []).append(word)
        rules = Rules(
            MappingProxyType(known),
            self._count("no_repeat_ngram_size"),
            self._count("min_length"),
            self._count("min_new_tokens"),
            None if self._config.is_encoder_decoder else self._forced("forced_bos_token_id"),
            self._forced("forced_eos_token_id"),
        )
        return NO_RULES if rules == NO_RULES else rules

    def _forced(self, name: str) -> int | None:
        return next(iter(_known(_tokens(self._settings, name)[:1], self._vocab_size)), None)

    def _bad_words(self) -> list[tuple[int, ...]]:
        words = self._settings.get("bad_words_ids") or []
        if not isinstance(words, list) or not all(isinstance(word, list) and word for word in words):
            raise _wrong("bad_words_ids", words, "a list of lists of token ids")
        return [tuple(_tokens({"bad_words_ids": word}, "bad_words_ids")) for word in words]

    def _count(self, name: str) -> int:
        value = self._settings.get(name)
        if value is not None and not (is_whole(value) and value >= 0):
            raise _wrong(name, value, "a whole number")
        return int(value or 0)

    def _sampling(self) -> Mapping[str, Any]:
        given = {ours: self._settings.get(theirs) for theirs, ours in SAMPLING.items()}
        wanted = {name: value for name, value in given.items() if value is not None}
        does_sample = self._settings.get("do_sample")
        if does_sample not in (None, True, False):
            raise _wrong("do_sample", does_sample, "true or false")
        if does_sample is False:
            wanted["temperature"] = 0.0
        try:
            SamplingParams(**wanted)
        except InvalidSamplingError as error:
            raise CorruptCheckpointError(f"The generation settings of the checkpoint: {error}") from error
        return MappingProxyType(wanted)

    def _name_unknown(self) -> None:
        """Say once, when a model is loaded, what it will do without."""
        asked = {name: self._settings.get(name) for name in UNKNOWN}
        named = [f"{n}={shown(v)}" for n, v in asked.items() if v not in (None, False, [], {}, *UNKNOWN[n])]
        if named:
            logger.warning("The checkpoint's generation settings ask for what is not done here: %s.", ", ".join(named))


def _whole_and_parts(values: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """A configuration as its file has it, and the parts that are about text."""
    parts = (values.get(name) for name in ("text_config", "decoder"))
    return (values, *(part for part in parts if isinstance(part, Mapping)))


def _tokens(source: Mapping[str, Any], name: str) -> list[int]:
    """The token ids under a name, one or a list of them."""
    value = source.get(name)
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    if not all(map(is_whole, tokens)):
        raise _wrong(name, value, "a token id, or a list of them")
    return tokens


def _known(tokens: Iterable[int], vocab_size: int) -> frozenset[int]:
    return frozenset(token for token in tokens if 0 <= token < vocab_size)


def _wrong(name: str, value: Any, wanted: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"The generation settings of the checkpoint have {name} {shown(value)}; it must be {wanted}."
    )
