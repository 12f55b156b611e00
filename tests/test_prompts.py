"""Prompts in all the forms that vLLM takes, for models with an encoder and without."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from encoder_checkpoints import END, RATE, START, extractor, save
from pagoda import LLM, SamplingParams
from pagoda.errors import (
    EmptyPromptError,
    EncoderInputError,
    EncoderInputTooLongError,
    PromptTooLongError,
    RequestError,
    TokenizerRequiredError,
)
from pagoda.prompts import PromptReader

PARAMS = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


def load(directory: Path, **options: Any) -> LLM:
    tokenizer = directory / "words"  # beside config.json, transformers would read it as the family's own
    return LLM(directory, tokenizer=tokenizer, block_size=16, kv_cache_memory_bytes=4 << 20, num_threads=1, **options)


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with load(save("bart", tmp_path_factory.mktemp("bart"))) as llm:
        yield llm


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with load(save("whisper", tmp_path_factory.mktemp("whisper"))) as llm:
        yield llm


def read(llm: LLM, prompt: Any) -> tuple[list[int] | None, list[int]]:
    """What the encoder and the decoder were given."""
    output = llm.generate(prompt, PARAMS)[0]
    return output.encoder_prompt_token_ids, output.prompt_token_ids


SOUND = np.sin(np.arange(4000) / 8).astype(np.float32)


class TestText:
    @pytest.mark.parametrize(
        ("prompt", "encoder", "decoder"),
        [
            ("w10 w11", [10, 11, END], [START]),
            ([10, 11], [10, 11], [START]),
            ({"prompt": "w10"}, [10, END], [START]),
            ({"prompt_token_ids": [10]}, [10], [START]),
            ({"encoder_prompt": "w10"}, [10, END], [START]),
            ({"encoder_prompt": {"prompt": "w10"}, "decoder_prompt": None}, [10, END], [START]),
            ({"encoder_prompt": {"prompt_token_ids": [10]}, "decoder_prompt": "w20 w21"}, [10], [START, 20, 21]),
            ({"encoder_prompt": [10], "decoder_prompt": [20]}, [10], [START, 20]),
            ({"encoder_prompt": [10], "decoder_prompt": [START, 20]}, [10], [START, 20]),
            ({"encoder_prompt": [10], "decoder_prompt": {"prompt_token_ids": [20]}}, [10], [START, 20]),
            ({"encoder_prompt": np.array([10]), "decoder_prompt": []}, [10], [START]),
        ],
    )
    def test_forms(self, bart, prompt, encoder, decoder):
        assert read(bart, prompt) == (encoder, decoder)

    def test_what_was_given_is_told(self, bart):
        output = bart.generate({"encoder_prompt": "w10", "decoder_prompt": "w20"}, PARAMS)[0]
        assert (output.encoder_prompt, output.prompt) == ("w10", "w20")
        assert output.num_encoder_tokens == 2

    def test_streams_and_lists(self, bart):
        prompts = ["w10 w11", {"encoder_prompt": [10, 11, END], "decoder_prompt": None}]
        first, second = bart.generate(prompts, PARAMS)
        *_, last = bart.stream("w10 w11", PARAMS)
        assert first.outputs[0].token_ids == second.outputs[0].token_ids == last.output.outputs[0].token_ids

    def test_a_token_that_generation_must_begin_with(self, tmp_path):
        """As of models that translate into a language named by the first token."""
        with load(save("bart", tmp_path, forced_bos_token_id=7)) as llm:
            assert read(llm, "w10")[1] == [START, 7]
            assert read(llm, {"encoder_prompt": "w10", "decoder_prompt": [START]})[1] == [START, 7]
            assert read(llm, {"encoder_prompt": "w10", "decoder_prompt": "w8"})[1] == [START, 8]

    def test_what_the_checkpoint_never_says(self, tmp_path):
        """As in generate(): some tokens not at all, others not first; ids that do not exist are left out."""
        settings = {"suppress_tokens": [28, 75, 999], "begin_suppress_tokens": [40]}
        settings["bad_words_ids"] = [[12], [13, 14], [END]]
        with load(save("bart", tmp_path, **settings)) as llm:
            assert llm.engine.model.generation.banned == {12, 28, 75}
            free = SamplingParams(temperature=1.0, seed=3, n=8, max_tokens=12, ignore_eos=True, logit_bias={40: 100})
            samples = [sample.token_ids for sample in llm.generate("w10 w11", free)[0].outputs]
        assert not {12, 28, 75} & {token for tokens in samples for token in tokens}
        assert all(tokens[0] != 40 and set(tokens[1:]) == {40} for tokens in samples)

    @pytest.mark.parametrize(
        ("prompt", "error", "message"),
        [
            ("", EmptyPromptError, "prompt is empty"),
            ({"encoder_prompt": "w10", "decoder_prompt": ""}, EmptyPromptError, "prompt is empty"),
            ({"encoder_prompt": {}}, RequestError, "needs prompt"),
            ({}, RequestError, "needs prompt"),
            ({"decoder_prompt": "w10"}, EncoderInputError, "no encoder_prompt"),
            ({"prompt": "w1", "multi_modal_data": {"audio": SOUND}}, EncoderInputError, "reads text"),
            ({"encoder_prompt": {"prompt": "w1", "decoder_prompt": "w2"}}, EncoderInputError, "give it beside"),
            ({"encoder_prompt": None}, RequestError, "prompt is None"),
            ({"encoder_prompt": 5}, RequestError, "prompt is a int"),
            ({"encoder_prompt": [5.5]}, RequestError, "list of token ids"),
            ({"encoder_prompt": ["w5"]}, RequestError, "list of token ids"),
            ({"encoder_prompt": [[5]]}, RequestError, "list of token ids"),
            ({"encoder_prompt": [5], "decoder_prompt": 7}, RequestError, "prompt is a int"),
        ],
    )
    def test_errors(self, bart, prompt, error, message):
        with pytest.raises(error, match=message):
            bart.generate(prompt, PARAMS)

    def test_without_a_tokenizer(self, bart):
        with LLM(bart.engine.model, kv_cache_memory_bytes=4 << 20) as llm:
            assert read(llm, [10]) == ([10], [START])
            with pytest.raises(TokenizerRequiredError):
                llm.generate("w10", PARAMS)


class TestSound:
    @pytest.mark.parametrize(
        "prompt",
        [
            {"encoder_prompt": {"multi_modal_data": {"audio": (SOUND, RATE)}}, "decoder_prompt": "w5"},
            {"encoder_prompt": {"multi_modal_data": {"audio": SOUND}}, "decoder_prompt": [START, 5]},
            {"prompt": "w5", "multi_modal_data": {"audio": (SOUND, RATE)}},
            {"prompt_token_ids": [5], "multi_modal_data": {"audio": SOUND.tolist()}},
        ],
    )
    def test_forms(self, whisper, prompt):
        assert read(whisper, prompt) == (None, [START, 5])

    def test_sound_is_what_the_extractor_makes_of_it(self, whisper):
        features = extractor()(SOUND, sampling_rate=RATE, return_tensors="pt").input_features[0]
        params = SamplingParams(temperature=0, max_tokens=1, logprobs=0)
        prompts = [{"multi_modal_data": {"audio": SOUND}}, {"encoder_prompt": {"input_features": features}}]
        first, second = (whisper.generate(prompt, params)[0] for prompt in prompts)
        assert first.outputs[0].cumulative_logprob == second.outputs[0].cumulative_logprob
        assert second.num_cached_encoder_tokens == second.num_encoder_tokens == 24
        assert second.prompt_token_ids == [START]

    @pytest.mark.parametrize(
        ("audio", "error", "message"),
        [
            ((SOUND, 8000), EncoderInputError, "8000 samples per second; this model reads 16000"),
            (np.zeros(RATE + 1), EncoderInputTooLongError, "lasts 1.0 s; this model reads up to 1 s"),
            (np.zeros(0), EncoderInputTooLongError, "not nothing"),
            (np.full(100, np.nan), EncoderInputError, "NaN"),
            (np.zeros((2, 100)), EncoderInputError, r"audio is \[2, 100\] of float64; give the samples of one channel"),
            ((np.zeros((100, 2)), RATE), EncoderInputError, "one channel"),
            (np.zeros(100, dtype=complex), EncoderInputError, "real numbers"),
            ([[0.0], [0.0, 1.0]], EncoderInputError, "audio is a list"),
            (None, EncoderInputError, "one channel"),
            ("words", EncoderInputError, "one channel"),
        ],
    )
    def test_errors(self, whisper, audio, error, message):
        with pytest.raises(error, match=message):
            whisper.generate({"multi_modal_data": {"audio": audio}}, PARAMS)

    def test_text_alone(self, whisper):
        for prompt in ("w5", {"encoder_prompt": "w5"}, [5]):
            with pytest.raises(EncoderInputError, match="reads sound"):
                whisper.generate(prompt, PARAMS)
        for data in ({"image": 0}, None, [SOUND]):
            with pytest.raises(EncoderInputError, match="reads its audio"):
                whisper.generate({"multi_modal_data": data}, PARAMS)
        both = {"input_features": torch.zeros(8, 48), "multi_modal_data": {"audio": SOUND}}
        with pytest.raises(EncoderInputError, match="of which the encoder reads one"):
            whisper.generate(both, PARAMS)
        for features in (None, "words", [[1.0], [1.0, 2.0]]):
            with pytest.raises(EncoderInputError, match="no array of numbers"):
                whisper.generate({"input_features": features}, PARAMS)


def test_equal_inputs_have_equal_digests_and_others_do_not(bart, whisper):
    encoder = bart.engine.model.encoder
    same, other, longer = (encoder.input_of_tokens(each) for each in ([5, 6], [6, 5], [5, 6, 0]))
    assert same.digest == encoder.input_of_tokens([5, 6]).digest
    features = torch.zeros(8, 48)
    sound = whisper.engine.model.encoder.input_of_features(features)
    features = features.clone()
    features[7, 47] = 1e-30
    louder = whisper.engine.model.encoder.input_of_features(features)
    assert len({each.digest for each in (same, other, longer, sound, louder)}) == 5


def spaces_replaced(raw: Tokenizer) -> None:
    raw.normalizer = normalizers.Replace(Regex(r"\s+"), " ")


def spaces_dropped(raw: Tokenizer) -> None:
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


def spaces_swallowed(raw: Tokenizer) -> None:
    raw.add_tokens([AddedToken("b", lstrip=True, rstrip=True)])


def reader_of(prepare: Any, model: Any = None) -> PromptReader:
    raw = Tokenizer(model or models.WordLevel({"a": 0, "b": 1, " ": 2, "?": 3}, unk_token="?"))
    prepare(raw)
    return PromptReader(SimpleNamespace(encoder=None), PreTrainedTokenizerFast(tokenizer_object=raw), None, 100)


class CountingReader(PromptReader):
    """Counts the characters that its tokenizer is given."""

    num_characters = 0

    def need_tokenizer(self) -> Any:
        def tokenizer(text: str, **options: Any) -> Any:
            self.num_characters += len(text)
            return super(CountingReader, self).need_tokenizer()(text, **options)

        return tokenizer


class TestLength:
    """Text that fits is read, however many characters a token has; nobody waits for a book that does not."""

    @pytest.mark.parametrize("prepare", [spaces_replaced, spaces_dropped, spaces_swallowed])
    def test_spaces_that_no_token_has_do_not_count(self, prepare):
        text = "b" + " " * 1_000_000 + "b"
        assert len(reader_of(prepare).read(text).token_ids) <= 3

    def test_a_long_word_that_is_unknown_is_one_token(self):
        reader = reader_of(spaces_dropped)
        assert reader.read("x" * 300_000 + " a").token_ids == [3, 0]

    def test_what_does_not_fit_is_refused_before_all_of_it_is_read(self):
        counting = CountingReader(SimpleNamespace(encoder=None), reader_of(spaces_dropped).need_tokenizer(), None, 100)
        with pytest.raises(PromptTooLongError, match="of which the first 65536 are more than 100 tokens already"):
            counting.read("a b " * 1_000_000)
        assert counting.num_characters == 65_536

    def test_text_of_usual_length_is_read_once(self):
        counting = CountingReader(SimpleNamespace(encoder=None), reader_of(spaces_dropped).need_tokenizer(), None, 100)
        counting.read("a b " * 25)
        assert counting.num_characters == 100
