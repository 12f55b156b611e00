"""How layers rotate keys is found out, and what keys have in common comes off in pages of few bits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2Config

from engine.tiny import tiny_model
from oracle.families import build_tiny
from pagoda import LLM, SamplingParams
from pagoda.config import Environment
from pagoda.engine.format_fit import calibration_text
from pagoda.errors import ConfigError
from pagoda.formats.constants import MOST_PAIRS, PageTurns
from pagoda.kernels.dispatch import choose_kernels
from pagoda.models.calibration import MOST_TURN, NUM_SINK_TOKENS, ScaleRule, constants_of, measure
from pagoda.models.loader import model_from_config
from pagoda.models.model import Model
from pagoda.models.passage import can_run

pytestmark = pytest.mark.usefixtures("two_threads")

TOKENS = torch.tensor([token * 7919 % 97 for token in range(200)])
PAGE_TOKENS = 16


def statistics(family: str):
    model = Model.from_transformers(build_tiny(family))
    assert can_run(model)
    return list(measure(model, choose_kernels(Environment()), TOKENS).values())


def error(model: Model, format: str, calibration: str, length: int) -> float:
    """Of the logarithms of probabilities over pages in a format, root mean square."""
    prompt = [token * 31 % 97 for token in range(length)]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)

    def logprobs(**options: str) -> torch.Tensor:
        with LLM(model, kv_cache_memory_bytes=8 << 20, max_model_len=-(-length // 256) * 256, **options) as llm:
            (output,) = llm.generate([prompt], params)
            return torch.tensor([each.logprob for each in output.prompt_logprobs[1:]])

    exact = logprobs(kv_cache_dtype="fp32", kv_cache_calibration="none")
    return float((logprobs(kv_cache_dtype=format, kv_cache_calibration=calibration) - exact).square().mean().sqrt())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "mistral"])
def test_halves_of_a_head_are_paired(family):
    for found in statistics(family):
        width = 2 * len(found.rotation.frequencies)
        assert found.is_explained
        assert found.rotation.channels.tolist() == [[i, i + width // 2] for i in range(width // 2)]
        assert found.rotation.frequencies[0] == 1


@pytest.mark.parametrize("family", ["cohere", "glm"])
def test_neighbours_are_paired(family):
    found = statistics(family)[0]
    assert found.is_explained
    assert found.rotation.channels[:2].tolist() == [[0, 1], [2, 3]]
    assert found.rotation.frequencies[0] == 1


def test_a_rotation_may_go_the_other_way():
    found = statistics("nanochat")[0]
    assert found.is_explained
    assert found.rotation.frequencies[0] == -1


def test_a_part_of_a_head_is_rotated():
    found = statistics("gpt_neox")[0]
    assert found.is_explained
    assert found.rotation.frequencies[0] == 1
    assert found.rotation.frequencies[-1] == 0


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_the_last_channels_of_latents_are_rotated(family):
    found, *_ = statistics(family)
    assert found.is_explained
    is_rotated = found.rotation.frequencies != 0
    channels = found.rotation.channels[is_rotated]
    assert found.rotation.frequencies[0] == 1
    assert 2 * is_rotated.sum() == channels.max() + 1 - channels.min()
    assert channels.min() > found.rotation.channels[~is_rotated].max()


def test_without_rotation_positions_do_not_matter():
    found = statistics("bloom")[0]
    assert found.is_explained
    assert not found.rotation.frequencies.any()


def test_keys_that_depend_on_positions_otherwise_have_no_base():
    """Learned positions: what keys have in common changes with them."""
    for found in statistics("gpt2"):
        assert not found.is_explained
        constants = constants_of(
            found, ScaleRule(1.0, 0.0), PageTurns.of(found.rotation.frequencies, PAGE_TOKENS, 4), PAGE_TOKENS
        )
        assert constants.num_pairs == 0


@pytest.mark.parametrize("family", ["bart", "mamba2"])
def test_what_a_text_alone_does_not_run_is_not_measured(family):
    assert not can_run(Model.from_transformers(build_tiny(family)))


@pytest.mark.parametrize("family", ["jamba", "qwen3_next", "falcon_h1"])
def test_layers_beside_recurrent_ones_are_measured(family):
    model = Model.from_transformers(build_tiny(family))
    assert len(measure(model, choose_kernels(Environment()), TOKENS)) == len(model.spec.sites)
    assert model.spec.states


def test_the_first_tokens_do_not_count():
    """Keys of the first layer are those of the tokens alone."""
    model, kernels = Model.from_transformers(build_tiny("llama")), choose_kernels(Environment())
    first, second = (
        next(iter(measure(model, kernels, torch.cat((torch.tensor(sinks), TOKENS))).values()))
        for sinks in ([1] * NUM_SINK_TOKENS, [2] * NUM_SINK_TOKENS)
    )
    assert torch.equal(first.means, second.means)


def test_a_token_that_breaks_the_model_breaks_its_own_request_alone():
    model = tiny_model()
    model.network.model.embed_tokens.weight.data[TOKENS[50]] = float("nan")
    assert not measure(model, choose_kernels(Environment()), TOKENS)
    with LLM(model, kv_cache_dtype="int8", kv_cache_memory_bytes=8 << 20) as llm:
        assert int(TOKENS[50]) not in (prompt := [5, 6, 7])
        assert len(llm.generate([prompt], SamplingParams(max_tokens=1, temperature=0))[0].outputs[0].token_ids) == 1


@pytest.fixture(scope="module")
def biased() -> Model:
    """As Qwen2's: biases of the key projection make some channels a hundred times as large as the others.

    The pairs of channels 6 and 8 turn by four and by one radian over 700 tokens, the others hardly.
    """
    config = Qwen2Config(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        rope_theta=1e6,
        initializer_range=0.2,
    )
    model = model_from_config(config, dtype="float32", seed=0)
    for layer in model.network.model.layers:
        bias = layer.self_attn.k_proj.bias
        bias.data.zero_()
        bias.data[torch.tensor([6, 8, 13, 14, 31])] = torch.tensor([150.0, -90.0, 200.0, 70.0, -120.0])
    return model


class TestConstants:
    def test_they_are_the_biases_of_slow_pairs(self, biased):
        for found in measure(biased, choose_kernels(Environment()), TOKENS).values():
            constants = constants_of(found, ScaleRule(1.0, 0.0), PageTurns.of(found.rotation.frequencies, 32, 4), 32)
            taken = {int(first): base for (first, *_), base in zip(constants.pairs[0], constants.bases[0], strict=True)}
            assert {6, 8, 13, 14, 15} <= {*taken}
            assert all(found.rotation.frequencies[channel] * 32 < MOST_TURN for channel in taken)
            assert 1 <= constants.num_pairs <= MOST_PAIRS
            assert (constants.scales.log2() % 1 == 0).all()

    @pytest.mark.parametrize("format", ["int8", "k8v4", "int4"])
    @pytest.mark.parametrize("length", [60, 700])
    def test_what_is_drawn_is_nearer_to_what_exact_pages_give(self, biased, format, length):
        plain, calibrated = (error(biased, format, calibration, length) for calibration in ("none", "auto"))
        assert calibrated < plain / (2 if format == "k8v4" else 3)  # whose values lose as much either way

    def test_the_same_model_has_the_same_ones(self, biased):
        first, second = (next(iter(measure(biased, choose_kernels(Environment()), TOKENS).values())) for _ in range(2))
        assert torch.equal(first.means, second.means)


@pytest.fixture(scope="module")
def uneven_latents() -> Model:
    """Some channels of latents are 64 times as large as the others, and matter no more."""
    model = Model.from_transformers(build_tiny("deepseek_v3"))
    for layer in model.network.model.layers:
        attention = layer.self_attn
        attention.kv_a_layernorm.weight.data[::5] *= 64
        attention.kv_b_proj.weight.data[:, ::5] /= 64
    return model


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_channels_of_latents_are_scaled_each_by_itself(uneven_latents, format):
    plain, calibrated = (error(uneven_latents, format, calibration, 200) for calibration in ("none", "auto"))
    assert calibrated < plain / 3


def test_a_file_may_be_the_text(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read as text"):
        LLM(kv_cache_calibration=str(tmp_path / "missing.txt"), kv_cache_dtype="int8")
    LLM(kv_cache_calibration=str(tmp_path / "missing.txt"), kv_cache_memory_bytes=8 << 20).close()  # nobody reads it
    file = tmp_path / "text.txt"
    file.write_text("The sea was calm.")
    with pytest.raises(ConfigError, match="at least 80"):
        LLM(kv_cache_calibration=str(file), kv_cache_dtype="int8")
    file.write_text("The sea was calm, and nobody spoke. " * 40)
    with LLM(kv_cache_calibration=str(file), kv_cache_dtype="int8", kv_cache_memory_bytes=8 << 20) as llm:
        assert llm.generate(["The sea"], SamplingParams(max_tokens=2))[0].outputs[0].token_ids


def test_a_tokenizer_that_fails_at_the_text_is_named():
    def failing(text: str) -> None:
        raise ValueError(text[:5])

    with pytest.raises(ConfigError, match="give another file, or none"):
        calibration_text("auto", failing, 100)
    assert calibration_text("none", failing, 100).token_ids == []


def test_tokens_that_the_model_does_not_have_are_left_out():
    def tokenizer(text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[*range(90, 110)])

    assert calibration_text("auto", tokenizer, 100).token_ids == [*range(90, 100)]
