"""Encoder-decoder models through the engine: outputs are shared by content, computed once, and never mixed up."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any

import pytest
import torch

from oracle.families import build_tiny
from oracle.generation import random_tokens
from pagoda import LLM, RequestOutput, SamplingParams
from pagoda.collector import Collector
from pagoda.engine.forward import Forward
from pagoda.errors import (
    ConfigError,
    EmptyPromptError,
    EncoderInputError,
    EncoderInputTooLongError,
    NonFiniteCacheError,
    TokenOutOfRangeError,
)
from pagoda.layouts.spec import CacheSpec
from pagoda.models.encoder import Encoder
from pagoda.models.model import Model

PAGE_TOKENS = 16
PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=0)
MIB = 1 << 20


@pytest.fixture(scope="module", params=["t5", "bart", "t5gemma"])
def model(request: pytest.FixtureRequest) -> Model:
    return Model.from_transformers(build_tiny(request.param))


@pytest.fixture(scope="module")
def bart() -> Model:
    return Model.from_transformers(build_tiny("bart"))


@pytest.fixture(scope="module")
def llama() -> Model:
    return Model.from_transformers(build_tiny("llama"))


@pytest.fixture
def inputs_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the length of each input that an encoder reads."""
    lengths: list[int] = []
    encode = Encoder.encode

    def noted(self: Encoder, input: Any) -> torch.Tensor:
        lengths.append(input.num_tokens)
        return encode(self, input)

    monkeypatch.setattr(Encoder, "encode", noted)
    return lengths


def make(model: Model, nbytes: int = 8 * MIB, **options: Any) -> LLM:
    options = {"max_num_batched_tokens": 64, "max_num_seqs": 8, **options}
    return LLM(model, block_size=PAGE_TOKENS, kv_cache_memory_bytes=nbytes, num_threads=1, **options)


def both(spec: CacheSpec) -> int:
    """Numbers of a token of the sequence and of one of the encoder."""
    return spec.elements_per_token + spec.elements_per_encoder_token


def asked(length: int, decoder: list[int] | None = None, seed: int = 0) -> dict[str, Any]:
    """A prompt whose encoder input has so many tokens."""
    return {"encoder_prompt": random_tokens(length, seed), "decoder_prompt": decoder or [2, *random_tokens(5, 9)]}


def tokens(outputs: Any) -> list[Any]:
    """Tokens and how likely they were, rounded: tokens alone of a tiny model say little of what it has read."""
    samples = [sample for output in outputs for sample in output.outputs]
    return [(sample.token_ids, [round(each.logprob, 3) for each in sample.logprobs]) for sample in samples]


class TestSharing:
    def test_an_input_is_read_once(self, model, inputs_read):
        prompts = [asked(40), asked(40, [2, 7]), asked(23, seed=1), asked(40)]
        with make(model) as llm:
            together = llm.generate(prompts, PARAMS)
            assert sorted(inputs_read) == [23, 40]
            again = llm.generate(prompts, PARAMS)
            assert len(inputs_read) == 2
            assert [output.num_cached_encoder_tokens for output in again] == [40, 40, 23, 40]
            llm.check_integrity()
        with make(model) as llm:
            alone = [llm.generate(prompt, PARAMS)[0] for prompt in prompts]
        assert tokens(together) == tokens(again) == tokens(alone)

    def test_inputs_change_what_is_said_of_tokens(self, model):
        """Else nothing here would show a mix-up."""
        params = SamplingParams(temperature=0, max_tokens=1, logprobs=0)
        with make(model) as llm:
            outputs = llm.generate([asked(40, seed=seed) for seed in range(6)], params)
        assert len({output.outputs[0].cumulative_logprob for output in outputs}) == 6

    def test_samples_of_a_request_share_its_input(self, model, inputs_read):
        params = SamplingParams(n=3, temperature=0, max_tokens=6, ignore_eos=True, logprobs=0)
        with make(model) as llm:
            first, *others = tokens(llm.generate(asked(40), params))
            assert others == [first, first]
            assert inputs_read == [40]
            assert tokens(llm.generate(asked(40), PARAMS)) == [first]
            llm.check_integrity()

    def test_tenants_share_nothing(self, model, inputs_read):
        with make(model) as llm:
            first = llm.generate(asked(40), PARAMS, cache_salt="a")
            other = llm.generate(asked(40), PARAMS, cache_salt="b")[0]
            assert (other.num_cached_tokens, other.num_cached_encoder_tokens) == (0, 0)
            assert inputs_read == [40, 40]
            assert tokens([other]) == tokens(first)

    def test_without_prefix_caching_every_request_reads(self, model, inputs_read):
        with make(model, enable_prefix_caching=False) as llm:
            assert tokens(llm.generate([asked(40)] * 2, PARAMS)) == tokens(llm.generate(asked(40), PARAMS)) * 2
            assert inputs_read == [40] * 3
            assert llm.cache_stats().groups[-1].idle == 0
            llm.check_integrity()

    def test_forgotten_inputs_are_read_again(self, model, inputs_read):
        with make(model) as llm:
            first = llm.generate(asked(40), PARAMS)
            assert llm.reset_prefix_cache() > 0
            assert tokens(llm.generate(asked(40), PARAMS)) == tokens(first)
            assert inputs_read == [40, 40]

    def test_pages_that_are_evicted_while_the_decoder_s_stay(self, model, inputs_read):
        """The output is computed again beside a decoder prompt that is held."""
        page = PAGE_TOKENS * 4 * both(model.spec)
        with make(model, 4 * page, max_num_seqs=1) as llm:
            first = llm.generate(asked(40, [2, 7]), PARAMS)
            llm.generate(asked(50, [2, 7], seed=1), PARAMS)
            again = llm.generate(asked(40, [2, 7]), PARAMS)[0]
            assert (again.num_cached_tokens, again.num_cached_encoder_tokens) == (1, 0)
            assert tokens([again]) == tokens(first)
            assert inputs_read == [40, 50, 40]
            llm.check_integrity()


class TestScheduling:
    def test_what_encoders_read_counts_as_tokens_of_a_step(self, bart, monkeypatch):
        """Of three inputs of 40 tokens, only one fits beside the others' in a step of 64."""
        steps: list[int] = []
        read = Forward.read

        def noted(self: Forward, plan: Any) -> Any:
            new = read(self, plan)
            steps.append(sum(entry.namespace.num_encoder_tokens for entry in new.outputs))
            return new

        monkeypatch.setattr(Forward, "read", noted)
        with make(bart) as llm:
            llm.generate([asked(40, seed=seed) for seed in range(3)] + [asked(9, seed=5)], PARAMS)
        assert [each for each in steps if each] == [40, 40, 49]

    def test_an_input_longer_than_a_step_is_read_at_once(self, bart, inputs_read):
        prompts = [asked(200, seed=seed) for seed in range(2)]
        with make(bart) as llm:
            outputs = llm.generate(prompts, PARAMS)
            assert inputs_read == [200, 200]
            assert tokens(outputs) == [tokens(llm.generate(prompt, PARAMS))[0] for prompt in prompts]

    def test_pages_for_few_inputs_serve_many(self, model):
        prompts = [asked(20 + seed, seed=seed) for seed in range(12)]
        page = PAGE_TOKENS * 4 * both(model.spec)
        with make(model) as llm:
            expected = tokens(llm.generate(prompts, PARAMS))
        with make(model, 6 * page) as llm:
            assert tokens(llm.generate(prompts, PARAMS)) == expected
            llm.check_integrity()


class TestFormats:
    def test_codes_by_reach(self, bart):
        """Formats are chosen for an encoder's tokens as for any other, and logits stay near."""
        params = SamplingParams(temperature=0, max_tokens=1, logprobs=0)
        logprobs = []
        for name in ("auto", "encoder=int8", "int8"):
            with make(bart, kv_cache_dtype=name) as llm:
                assert ("int8" in llm.engine.memory.geometries[1].format_name) == (name != "auto")
                logprobs.append(llm.generate(asked(40), params)[0].outputs[0].cumulative_logprob)
        exact, *coded = logprobs
        assert all(0 < abs(each - exact) < 0.05 for each in coded)

    def test_bytes_follow_from_layout_and_format(self, bart):
        with make(bart, 8 * MIB) as llm:
            memory = llm.engine.memory
        heads, width, layers = 4, 16, 2
        assert memory.nbytes_per_encoder_token == memory.nbytes_per_token == 4 * 2 * heads * width * layers
        assert memory.max_encoder_len == 512
        assert 8 * MIB - 2 * PAGE_TOKENS * memory.nbytes_per_token < memory.nbytes <= 8 * MIB


class TestErrors:
    @pytest.mark.parametrize(
        ("prompt", "error", "message"),
        [
            ({"encoder_prompt": []}, EmptyPromptError, "encoder prompt has no token"),
            ({"encoder_prompt": [5, 128]}, TokenOutOfRangeError, "Token id 128 is not in the encoder's vocabulary"),
            ({"encoder_prompt": [5], "decoder_prompt": [2, 128]}, TokenOutOfRangeError, "not in the vocabulary"),
            ({"encoder_prompt": [5] * 513}, EncoderInputTooLongError, "reads at most 512"),
            ({"encoder_prompt": {"input_features": [[1.0]]}}, EncoderInputError, "reads text"),
            ({"encoder_prompt": {"multi_modal_data": {"audio": [0.0]}}}, EncoderInputError, "reads text"),
            ({"decoder_prompt": [2]}, EncoderInputError, "no encoder_prompt"),
        ],
    )
    def test_before_any_page_is_taken(self, bart, prompt, error, message):
        with make(bart) as llm:
            with pytest.raises(error, match=message):
                llm.generate(prompt, PARAMS)
            assert llm.cache_stats().groups[-1].free == llm.cache_stats().groups[-1].total
            assert len(llm.generate(asked(40), PARAMS)[0].outputs[0].token_ids) == 6

    def test_longer_than_the_pages(self, bart):
        page = PAGE_TOKENS * 4 * both(bart.spec)
        with make(bart, 3 * page) as llm, pytest.raises(EncoderInputTooLongError, match="pages for 48; shorten it or"):
            llm.generate(asked(49), PARAMS)

    def test_a_decoder_reads_nothing_else(self, llama):
        with make(llama) as llm:
            for prompt in (asked(4), {"prompt_token_ids": [5], "multi_modal_data": {"audio": [0.0]}}):
                with pytest.raises(EncoderInputError, match="has no encoder"):
                    llm.generate(prompt, PARAMS)

    def test_sound_of_another_shape(self):
        whisper = Model.from_transformers(build_tiny("whisper"))
        with make(whisper) as llm:
            for prompt, message in (
                ([5, 6], "reads sound"),
                ({"encoder_prompt": {"input_features": torch.zeros(8, 47)}}, r"is \[8, 47\].*reads \[8, 48\]"),
                ({"encoder_prompt": {"input_features": torch.full((8, 48), float("nan"))}}, "NaN"),
                ({"encoder_prompt": {"multi_modal_data": {"audio": [0.0]}}}, "no preprocessor_config.json"),
            ):
                with pytest.raises(EncoderInputError, match=message):
                    llm.generate(prompt, PARAMS)

    def test_no_room_for_sound(self):
        whisper = Model.from_transformers(build_tiny("whisper"))
        page = PAGE_TOKENS * 4 * both(whisper.spec)
        with pytest.raises(ConfigError, match="which is always 24; raise it"):
            make(whisper, page)

    def test_what_an_encoder_breaks_is_found_by_nobody(self, model, monkeypatch):
        """A request fails whose encoder output is not a number, with all that read it, and the others go on."""
        encode = Encoder.encode

        def broken(self: Encoder, input: Any) -> torch.Tensor:
            hidden = encode(self, input)
            return hidden * float("nan") if input.num_tokens == 40 else hidden

        with make(model, max_num_batched_tokens=256) as llm:
            expected = tokens(llm.generate(asked(23, seed=1), PARAMS))
            llm.reset_prefix_cache()
            monkeypatch.setattr(Encoder, "encode", broken)
            for prompts in ([asked(40)], [asked(23, seed=1), asked(40), asked(40)]):
                with pytest.raises(NonFiniteCacheError):
                    llm.generate(prompts, PARAMS)
            monkeypatch.undo()
            assert tokens(llm.generate(asked(23, seed=1), PARAMS)) == expected
            assert llm.generate(asked(40), PARAMS)[0].num_cached_encoder_tokens == 0
            llm.check_integrity()

    def test_an_encoder_that_fails_ends_its_readers_and_nobody_else(self, bart, monkeypatch):
        encode = Encoder.encode

        def failing(self: Encoder, input: Any) -> torch.Tensor:
            if input.num_tokens == 40:
                raise RuntimeError("not enough memory")
            return encode(self, input)

        with make(bart, max_num_batched_tokens=256) as llm:
            expected = tokens(llm.generate(asked(23, seed=1), PARAMS))
            llm.reset_prefix_cache()
            monkeypatch.setattr(Encoder, "encode", failing)
            requests = llm._requests([asked(40), asked(23, seed=1), asked(40)], PARAMS, "")
            ends: SimpleQueue[Any] = SimpleQueue()
            llm._submit(requests, lambda request: Collector(request, None, on_end=ends.put))
            *failed, served = sorted((ends.get() for _ in requests), key=lambda end: isinstance(end, RequestOutput))
            assert [str(error) for error in failed] == [
                "The model's encoder failed: RuntimeError('not enough memory')"
            ] * 2
            assert tokens([served]) == expected
            monkeypatch.undo()
            assert llm.generate(asked(40), PARAMS)[0].num_cached_encoder_tokens == 0
            llm.check_integrity()

    def test_a_text_without_end_is_refused_before_it_takes_all_memory(self, monkeypatch):
        """Transformers makes a bias of T5 for every two tokens."""
        monkeypatch.setattr("pagoda.models.encoder.available_memory_nbytes", lambda: 64 * MIB)
        with make(Model.from_transformers(build_tiny("t5"))) as llm:
            assert llm.engine.memory.max_encoder_len == 387  # 387^2 pairs of 4 x 16 + 48 bytes are 16 MiB
            with pytest.raises(EncoderInputTooLongError, match="at most 387"):
                llm.generate(asked(388), PARAMS)
