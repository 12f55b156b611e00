"""A whole engine on the Triton kernels, interpreted: the tokens that the kernels of the processor give."""

from __future__ import annotations

import pytest
import torch

import kernels.interpreted  # noqa: F401 - skipped without Triton
from engine.tiny import tiny_config, tiny_model
from oracle.families import build_tiny, default_config, tiny_network
from pagoda import LLM, SamplingParams
from pagoda.config import Environment
from pagoda.errors import ConfigError, KernelUnavailableError
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.kernels.triton import coded
from pagoda.kernels.triton.backend import INTERPRETER, TritonKernels
from pagoda.models import rounding
from pagoda.models.attention import ATTENTION_NAME
from pagoda.models.build import random_network
from pagoda.models.coded import decode
from pagoda.models.determinism import check_determinism
from pagoda.models.loader import model_from_config
from pagoda.models.model import Model
from pagoda.models.rounding import quantize
from pagoda.models.stacked import StackedLinear, stack

PROMPTS = [{"prompt_token_ids": [*range(3, 24)]}, {"prompt_token_ids": [*range(3, 21), 7]}, {"prompt_token_ids": [5]}]
PARAMS = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


def answers(model, times=2, **options):
    options |= {"kv_cache_memory_bytes": 1 << 20, "block_size": 16, "kv_cache_calibration": "none"}
    with LLM(model, skip_tokenizer_init=True, **options) as llm:
        found = [
            [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]
            for _ in range(times)
        ]
        llm.check_integrity()
        return found, llm.engine.kernels.name, llm.cache_stats().hit_tokens


def test_tokens_are_those_of_the_processor_cold_and_warm(monkeypatch):
    model = tiny_model()
    (expected, _), _, hits = answers(model, kv_cache_dtype="int8")
    monkeypatch.setenv("PAGODA_KERNELS", "triton")
    monkeypatch.setenv(INTERPRETER, "1")
    found, name, triton_hits = answers(model, kv_cache_dtype="int8")
    assert name == "triton (interpreted)"
    assert found == [expected, expected]
    assert triton_hits == hits > 0


def test_coded_weights_are_read_as_codes(monkeypatch):
    """The tokens of weights that were decoded, on the same kernels: where the processor rounds inputs, these do not.

    With int4 some have 8 bits.
    """
    monkeypatch.setenv("PAGODA_KERNELS", "triton")
    monkeypatch.setenv(INTERPRETER, "1")
    network = random_network(tiny_config(), ATTENTION_NAME)
    quantize(network, "int4")
    model = Model.from_transformers(network)
    decode(network)
    dense = Model.from_transformers(network)
    [expected], *_ = answers(dense, times=1)
    read = []
    for each in ("_multiply_few", "decoded_rows"):
        original = getattr(coded, each)
        monkeypatch.setattr(coded, each, lambda *args, each=each, call=original: (read.append(each), call(*args))[1])
    monkeypatch.setattr(CodedWeight, "decoding", None)  # nor are they decoded on the processor
    found, name, hits = answers(model)
    assert name == "triton (interpreted)"
    assert found == [expected, expected]
    assert hits > 0
    assert set(read) == {"_multiply_few", "decoded_rows"}
    assert model.weight_nbytes < dense.weight_nbytes / 3


@pytest.mark.parametrize(("family", "stacks"), [("gpt_oss", {4}), ("deepseek_v3", {4, 8})])
def test_coded_experts_and_latents_are_read_as_codes(family, stacks, monkeypatch):
    """As above, of four experts, with biases, and of four heads, which have rows for keys and for values."""
    monkeypatch.setenv("PAGODA_KERNELS", "triton")
    monkeypatch.setenv(INTERPRETER, "1")
    monkeypatch.setattr(rounding, "MIN_ROWS", 2)
    network = build_tiny(family)
    quantize(network, "int8")
    model = Model.from_transformers(network)
    decode(network)
    [expected], *_ = answers(Model.from_transformers(network), times=1)
    read, original = set(), coded._multiply_routed
    monkeypatch.setattr(
        coded, "_multiply_routed", lambda rows, weight, *rest: (read.add(weight.count), original(rows, weight, *rest))
    )
    monkeypatch.setattr(CodedWeight, "decoding", None)
    found, *_ = answers(model)
    assert found == [expected, expected]
    assert read == stacks


def test_pages_made_of_coded_inputs_are_others(monkeypatch):
    """The processor rounds what meets codes, and these kernels do not."""

    def names(model):
        with LLM(model, skip_tokenizer_init=True, kv_cache_memory_bytes=1 << 20, block_size=16) as llm:
            return llm.engine.page_names.identity

    plain, codes = model_from_config(tiny_config()), model_from_config(tiny_config(), quantization="int8")
    expected = names(plain), names(codes)
    monkeypatch.setenv("PAGODA_KERNELS", "triton")
    monkeypatch.setenv(INTERPRETER, "1")
    assert names(plain) == expected[0]
    assert names(codes) != expected[1]


# Of heads and layers that keep as many, or other numbers; and what does not keep less, but reads less.
IN_PART = [
    {"kv_compression": "snapkv:tokens=24,window=4,kernel=3"},
    {"kv_compression": "h2o:tokens=20,every=2"},
    {"kv_compression": "pyramidkv:tokens=32,window=4,kernel=3"},
    {"sparse_attention": "quest:tokens=48,dense_layers=1"},
]


@pytest.mark.parametrize("options", IN_PART, ids=lambda each: next(iter(each.values())))
def test_sequences_that_are_kept_or_read_in_part_go_on_as_on_the_processor(options, monkeypatch):
    lengths, model = (48, 48) if "kv_compression" in options else (70, 60), tiny_model()
    prompts = [{"prompt_token_ids": [each * number % 50 + 3 for each in range(number)]} for number in lengths]
    prompts[1]["prompt_token_ids"].reverse()
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, **options)
    needed = {name: text for name, text in options.items() if name == "sparse_attention"}

    def texts():
        with LLM(model, skip_tokenizer_init=True, kv_cache_memory_bytes=1 << 20, block_size=16, **needed) as llm:
            found = [list(each.outputs[0].token_ids) for each in llm.generate(prompts, params, use_tqdm=False)]
            llm.check_integrity()
            return found

    expected = texts()
    monkeypatch.setenv("PAGODA_KERNELS", "triton")
    monkeypatch.setenv(INTERPRETER, "1")
    assert texts() == expected


@pytest.mark.parametrize("family", ["qwen3", "deepseek_v3"])
def test_tokens_of_layers_on_one_tensor_are_those_of_transformers(family, monkeypatch):
    """Norms of heads, and latents, both of parts of wider rows."""
    network = build_tiny(family)
    expected = [greedy(network, prompt["prompt_token_ids"]) for prompt in PROMPTS]
    model = Model.from_transformers(network)
    stack(model.network, model.discovered.siblings)
    monkeypatch.setenv("PAGODA_KERNELS", "triton")
    monkeypatch.setenv(INTERPRETER, "1")
    found, _, _ = answers(model)
    assert found == [expected, expected]
    layers = [module for module in model.network.modules() if isinstance(module, StackedLinear)]
    assert layers
    assert all(layer.is_proven for layer in layers if layer is not layer.siblings[0])


class TestDeterminism:
    """Whole prompts in bf16, cut in two ways; a card sums tiles itself, and is tried in the same way when it starts."""

    @pytest.fixture
    def model(self):
        config = tiny_config()
        config.num_hidden_layers = 1
        return model_from_config(config, dtype="bfloat16")

    def kernels(self, deterministic):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(INTERPRETER, "1")
            return TritonKernels.of(Environment(kernels="triton"), deterministic)

    def test_bits_do_not_depend_on_what_is_computed_beside(self, model):
        kernels = self.kernels(deterministic=True)
        assert kernels.is_deterministic
        assert kernels.recorder is None
        check_determinism(model, kernels)

    def test_nor_do_those_of_experts_in_codes(self, monkeypatch):
        monkeypatch.setattr(rounding, "MIN_ROWS", 2)
        config = default_config("mixtral")
        config.num_hidden_layers = 1
        network = tiny_network(config, 0).bfloat16()
        quantize(network, "int4")
        check_determinism(Model.from_transformers(network), self.kernels(deterministic=True))

    def test_they_do_unless_it_is_asked_for(self, model):
        kernels = self.kernels(deterministic=False)
        assert not kernels.is_deterministic
        with pytest.raises(ConfigError, match="depend on the tokens that are"):
            check_determinism(model, kernels)


@torch.inference_mode()
def greedy(network, prompt):
    tokens = list(prompt)
    for _ in range(PARAMS.max_tokens):
        tokens.append(int(network(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_it_is_refused_where_it_cannot_be(monkeypatch):
    monkeypatch.setenv("PAGODA_KERNELS", "triton")
    monkeypatch.delenv(INTERPRETER, raising=False)
    with pytest.raises(KernelUnavailableError, match="need a GPU"):
        LLM(tiny_model(), skip_tokenizer_init=True)
