"""Weights that are published in fewer bits: bytes in the index, counted again matrix by matrix from the shapes."""

from __future__ import annotations

import json

import pytest

from pagoda import plan
from pagoda.analysis.catalog import FOLDER, Published, find_shape, shapes
from pagoda.planning.weights.families import count_weights

BLOCK = 128  # DeepSeek's scales are of squares of that side
OTHERS_NBYTES = 2


def published(name: str) -> Published:
    found = find_shape(name).published
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["gpt-oss-20b", "gpt-oss-120b"])
def test_experts_in_mxfp4_have_four_bits_and_a_byte_for_every_32(name: str) -> None:
    config = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    count = count_weights(config)
    assert count is not None
    width, inner = config["hidden_size"], config["intermediate_size"]
    numbers = config["num_hidden_layers"] * config["num_local_experts"] * 3 * width * inner
    packed = numbers // 2 + numbers // 32
    assert published(name).nbytes == packed + (count.total - numbers) * OTHERS_NBYTES
    assert published(name).expert_nbytes == packed + (count.experts.num_weights - numbers) * OTHERS_NBYTES


def test_matrices_in_fp8_have_a_scale_for_every_block() -> None:
    config = json.loads((FOLDER / "deepseek-v3.json").read_text(encoding="utf-8"))
    count = count_weights(config)
    assert count is not None
    width, heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    plain, rotary, value = (config[f"{name}_head_dim"] for name in ("qk_nope", "qk_rope", "v"))
    rank, layers, dense = config["q_lora_rank"], config["num_hidden_layers"], config["first_k_dense_replace"]
    attention = [(width, rank), (rank, heads * (plain + rotary)), (width, latent + rotary)]
    attention += [(latent, heads * (plain + value)), (heads * value, width)]
    expert = [(width, config["moe_intermediate_size"])] * 3
    num_experts = (layers - dense) * config["n_routed_experts"]
    others = attention * layers + [(width, config["intermediate_size"])] * 3 * dense + expert * (layers - dense)
    experts_nbytes = num_experts * fp8_nbytes(expert)
    numbers = num_experts * sum(a * b for a, b in expert) + sum(a * b for a, b in others)
    found = published("deepseek-v3")
    assert found.expert_nbytes == experts_nbytes
    assert found.nbytes == experts_nbytes + fp8_nbytes(others) + (count.total - numbers) * OTHERS_NBYTES


def fp8_nbytes(matrices: list[tuple[int, int]]) -> int:
    return sum(rows * columns + 4 * -(-rows // BLOCK) * -(-columns // BLOCK) for rows, columns in matrices)


def test_every_configuration_in_fewer_bits_says_how_many_bytes_that_is() -> None:
    for shape in shapes():
        method = shape.config().get("quantization_config", {}).get("quant_method")
        assert (shape.published and shape.published.method) == method


def test_a_plan_counts_weights_as_they_are_published_unless_a_type_is_asked_for() -> None:
    """gpt-oss-120b is made for one such device."""
    found = plan("gpt-oss-120b", machine="H100")
    assert found.model.weight_nbytes == published("gpt-oss-120b").nbytes
    assert found.model.weights_are == "as published in mxfp4"
    assert any("4.25 bits" in note for note in found.model.notes)
    assert plan("gpt-oss-120b", dtype="bfloat16").model.weight_nbytes == 2 * 116_829_156_672


def test_a_step_reads_experts_in_their_own_precision() -> None:
    """One user: a table is not read, 4 of 128 experts in each layer are, and all else is."""
    count = count_weights(find_shape("gpt-oss-120b").config())
    assert count is not None
    kept = published("gpt-oss-120b")
    floor = plan("gpt-oss-120b", machine="H100").main.decode[0]
    rest = kept.nbytes - kept.expert_nbytes - 2 * count.table
    assert floor.weight_nbytes == round(rest + kept.expert_nbytes * 4 / 128)
