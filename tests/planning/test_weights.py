"""Weights counted from a config.json: as many as transformers builds, as many as published, and by who reads them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from oracle import families
from pagoda.analysis.catalog import Shape, shapes
from pagoda.errors import UnsupportedModelError
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.models.build import build_network
from pagoda.models.coded import codable_experts
from pagoda.models.coded_experts import dense_matrices
from pagoda.models.quiet import quiet
from pagoda.models.rounding import bits_of_weights, rounded
from pagoda.models.tiny import shrink
from pagoda.planning.weights.coded import BITS, coded_nbytes
from pagoda.planning.weights.count import Experts
from pagoda.planning.weights.families import DECODERS, OTHERS, count_weights

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}


def parameters(config: object) -> int:
    """Of the network that transformers makes of a configuration."""
    with quiet(), torch.device("meta"):
        return sum(each.numel() for each in build_network(config).parameters())


@pytest.mark.parametrize("shape", shapes(), ids=lambda shape: shape.name)
def test_shipped_configurations_have_the_published_number_of_weights(shape: Shape) -> None:
    count = count_weights(shape.config())
    assert count is not None
    assert count.total == shape.parameters


@pytest.mark.parametrize("shape", shapes(), ids=lambda shape: shape.name)
def test_transformers_builds_as_many(shape: Shape) -> None:
    config = shape.config()
    text = {name: value for name, value in config.get("text_config", config).items() if name != "quantization_config"}
    assert parameters(AutoConfig.for_model(**text)) == shape.parameters


@pytest.mark.parametrize("family", sorted({*DECODERS, *OTHERS}))
@pytest.mark.parametrize("is_tied", [False, True])
def test_every_family_that_is_counted_is_counted_right(family: str, is_tied: bool) -> None:
    config = shrink(families.default_config(family))
    if family not in OTHERS:
        config.tie_word_embeddings = is_tied
    count = count_weights(config.to_dict())
    assert count is not None
    assert count.total == parameters(config)


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_take_what_is_counted(bits: int) -> None:
    weight = CodedWeight.from_groups(rounded(torch.randn(64, 256), is_fine=bits == 8))
    assert weight.nbytes == 64 * 256 * BITS[f"int{bits}"] / 8


@pytest.mark.parametrize("shape", shapes(), ids=lambda shape: shape.name)
def test_rounded_weights_take_the_bytes_that_are_counted(shape: Shape) -> None:
    """Of the weights that get codes in the network which transformers builds."""
    config = shape.config()
    text = {name: value for name, value in config.get("text_config", config).items() if name != "quantization_config"}
    with quiet(), torch.device("meta"):
        network = build_network(AutoConfig.for_model(**text))
    count = count_weights(config)
    assert count is not None
    for quantization in ("int8", "int4"):
        bits = bits_of_weights(network, quantization)
        experts = {
            f"{name}.{matrix}": int(quantization.removeprefix("int"))
            for name, module in codable_experts(network).items()
            for matrix in dense_matrices(module)
        }
        bits |= experts
        weights = network.named_parameters()
        sizes = {name: each.numel() * (BITS[f"int{bits[name]}"] / 8 if name in bits else 2) for name, each in weights}
        nbytes, read = coded_nbytes(count, quantization, number_nbytes=2)
        assert nbytes == pytest.approx(sum(sizes.values()), rel=0.005)
        assert read.experts == pytest.approx(sum(sizes[name] for name in experts), rel=0.005)
        assert read.experts <= read.most <= nbytes


@pytest.mark.parametrize("biases", [{"attention_bias": True}, {"mlp_bias": True}, {"head_dim": 24}])
def test_what_a_configuration_adds_counts(biases: dict[str, object]) -> None:
    config = AutoConfig.for_model(**(LLAMA | biases))
    count = count_weights(config.to_dict())
    assert count is not None
    assert count.total == parameters(config)


def test_a_family_that_is_not_known_is_not_guessed() -> None:
    assert count_weights(LLAMA | {"model_type": "bamba"}) is None


def test_a_missing_field_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="has no moe_intermediate_size"):
        count_weights(LLAMA | {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2})


def test_a_step_reads_the_experts_that_its_tokens_choose() -> None:
    experts = Experts(num_weights=800, num_experts=8, per_token=2)
    assert experts.share_read(1) == 0.25
    assert experts.share_read(2) == pytest.approx(1 - 0.75**2)
    assert experts.share_read(1000) == pytest.approx(1)


def test_active_weights_are_those_that_models_are_named_after() -> None:
    """Qwen3-30B-A3B has about 3 billion active, gpt-oss-120b 5.1, DeepSeek-V3 37, Mixtral 12.9."""
    published = {"qwen3-30b-a3b": 3.3e9, "gpt-oss-120b": 5.1e9, "deepseek-v3": 37e9, "mixtral-8x7b": 12.9e9}
    for shape in shapes():
        if shape.name in published:
            count = count_weights(shape.config())
            assert count is not None
            assert count.active + count.table == pytest.approx(published[shape.name], rel=0.13)


def test_a_table_that_is_looked_up_is_not_read() -> None:
    tied, untied = (count_weights(LLAMA | {"tie_word_embeddings": value}) for value in (True, False))
    assert tied is not None
    assert untied is not None
    assert untied.total - tied.total == untied.table == 50 * 64
    assert tied.table == 0
    assert tied.read_by(1) == untied.read_by(1) == tied.total
