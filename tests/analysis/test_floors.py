"""The least time of a step, against sums written out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pagoda import plan
from pagoda.analysis.floors import attention_flops
from pagoda.analysis.source import describe
from pagoda.planning.users import Load


def test_a_decode_step_reads_weights_and_cache_once() -> None:
    found = plan("llama-3-70b", memory="320GiB", bandwidth="2TB/s", context=4096, users=8)
    one, eight, most = found.main.decode
    table = 128_256 * 8192
    assert one.weight_nbytes == eight.weight_nbytes == (70_553_706_496 - table) * 2
    assert (one.cache_nbytes, eight.cache_nbytes) == (4096 * 327_680, 8 * 4096 * 327_680)
    assert eight.seconds == pytest.approx((eight.weight_nbytes + eight.cache_nbytes) / 2e12)
    assert most.users == found.main.users
    assert eight.tokens_per_second == 8 / eight.seconds


def test_devices_read_side_by_side() -> None:
    one, four = (plan("llama-3-70b", bandwidth="1TB/s", gpus=gpus).main.decode[0] for gpus in (1, 4))
    assert four.seconds == pytest.approx(one.seconds / 4)


def test_more_tokens_read_more_experts() -> None:
    found = plan("mixtral-8x7b", bandwidth="1TB/s", users=100, context=1024)
    one, many = found.main.decode
    assert one.weight_nbytes == pytest.approx(12.75e9 * 2, rel=0.01)
    assert many.weight_nbytes == pytest.approx((46_702_792_704 - 32_000 * 4096) * 2, rel=0.001)


def test_states_are_read_and_written() -> None:
    found = plan("mamba-2.8b", bandwidth="1TB/s")
    assert found.main.decode[0].cache_nbytes == 2 * found.model.state_nbytes


def test_weights_in_fewer_bytes_are_read_faster() -> None:
    whole, quarter = (
        plan("llama-3-8b", bandwidth="1TB/s", weights=size).main.decode[0] for size in (None, 4_015_130_624)
    )
    assert quarter.weight_nbytes == pytest.approx(whole.weight_nbytes / 4, abs=1)


def test_a_prompt_costs_two_operations_a_weight_and_the_square_of_its_length() -> None:
    found = plan("llama-3-8b", flops="100TFLOPS", context=2048).prefill
    assert found is not None
    head = 128_256 * 4096
    assert found.weight_flops == 2 * ((8_030_261_248 - 2 * head) * 2048 + head)
    assert found.attention_flops == 4 * 32 * 32 * 128 * 2048 * 2049 // 2
    assert found.seconds == pytest.approx((found.weight_flops + found.attention_flops) / 1e14)


def test_a_shared_prefix_is_not_computed_again() -> None:
    whole, behind = (plan("llama-3-8b", flops="1TFLOPS", context=2048, shared_prefix=n).prefill for n in (0, 1024))
    assert whole is not None
    assert behind is not None
    assert behind.num_computed == 1024
    assert behind.attention_flops == whole.attention_flops - 4 * 32 * 32 * 128 * 1024 * 1025 // 2


def test_windows_bound_what_a_query_sees() -> None:
    """Of 62 layers 10 see everything and 52 the last 1,024 tokens, the query's own included."""
    model, length, known = describe("gemma-3-27b"), 3000, 500
    pairs = sum(10 * (at + 1) + 52 * min(at + 1, 1024) for at in range(known, length))
    assert attention_flops(model, Load(length, 1, known)) == pairs * 2 * 32 * (128 + 128)


def test_chunks_bound_what_a_query_sees(tmp_path: Path) -> None:
    config = {"model_type": "llama4_text", "num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 32}
    config |= {"attention_chunk_size": 100, "no_rope_layers": [1, 1, 1, 0], "vocab_size": 10, "head_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    pairs = sum((at + 1) + 3 * (at % 100 + 1) for at in range(50, 730))
    assert attention_flops(describe(tmp_path), Load(730, 1, 50)) == pairs * 2 * 2 * (16 + 16)


def test_latents_are_counted_as_the_heads_that_they_stand_for() -> None:
    model = describe("deepseek-v3")
    assert attention_flops(model, Load(10, 1)) == 61 * 55 * 2 * 128 * (128 + 64 + 128)


def test_a_decoder_attends_to_what_its_encoder_made() -> None:
    model = describe("whisper-large-v3")
    own, cross = 32 * 10 * 11 // 2, 32 * 10 * 1500
    assert attention_flops(model, Load(10, 1, num_encoded=1500)) == (own + cross) * 2 * 20 * 128


def test_no_rates_no_floors() -> None:
    found = plan("llama-3-8b", memory="80GiB")
    assert found.main.decode == ()
    assert found.prefill is None
