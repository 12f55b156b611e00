"""Plans against figures that are known: published ones, those of other counts, and what follows by definition."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from gguf_models import Unconfined, write_gguf
from models.test_packed_torchao import Packer, float8, intx, linear
from models.test_packed_torchao import write as write_torchao
from pagoda import plan
from pagoda.analysis.catalog import FOLDER
from pagoda.analysis.options import FORMATS
from pagoda.errors import ConfigError, CorruptCheckpointError, ModelError, ModelNotFoundError, UnsupportedModelError
from pagoda.llm import EMBEDDED_MODEL

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
N = 128 * KIB
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
}


def written(folder: Path, **changes: object) -> Path:
    """A config.json that is LLAMA but for `changes`; None leaves a field out."""
    config = {name: value for name, value in (LLAMA | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder / "config.json"


@pytest.mark.parametrize(
    ("name", "nbytes", "times"),
    [
        ("Llama-3-70B", 2 * 80 * 8 * 128 * 2 * N, 1.00),
        ("DeepSeek-V3", 61 * (512 + 64) * 2 * N, 24.89),
        ("Gemma-3-27B", 2 * 16 * 128 * 2 * (10 * N + 52 * 1024), 5.96),
        ("gpt-oss-20b", 2 * 8 * 64 * 2 * (12 * N + 12 * 128), 2.00),
        ("Qwen3-Next-80B-A3B", 2 * 2 * 256 * 2 * 12 * N, 4.00),
        ("Jamba-1.5-mini", 2 * 8 * 128 * 2 * 4 * N, 8.00),
    ],
)
def test_bytes_of_a_long_context_that_others_get_wrong(name: str, nbytes: int, times: float) -> None:
    found = plan(name, context=N)
    assert found.main.kept_nbytes == nbytes
    usual = next(each for each in found.effects if each.name == "all in all")
    assert usual.naive_nbytes / nbytes == pytest.approx(times, abs=0.005)
    # Whole pages, and states, come on top.
    assert nbytes <= found.main.context_nbytes - found.model.state_nbytes <= 1.005 * nbytes


def test_states_of_recurrent_layers() -> None:
    """In bf16 but for what scans carry on, which is fp32; other counts have it in 2 bytes."""
    assert plan("qwen3-next-80b-a3b").model.state_nbytes == 36 * (8192 * 4 * 2 + 32 * 128 * 128 * 4)
    assert plan("jamba-1.5-mini").model.state_nbytes == 28 * (8192 * 4 * 2 + 8192 * 16 * 4)


def test_llama_3_70b() -> None:
    found = plan("llama-3-70b", context=4096, users=8)
    assert found.main.nbytes_per_token == 327_680
    assert found.main.users_nbytes == 10 * GIB
    assert found.model.weight_nbytes == 70_553_706_496 * 2


def test_the_cache_overtakes_the_weights_where_it_is_as_large() -> None:
    for name, users in (("llama-3-8b", 1), ("llama-3-8b", 8), ("gemma-3-27b", 4), ("qwen3-next-80b-a3b", 100)):
        found = plan(name, users=users)
        at = found.main.overtakes_at
        assert at is not None
        assert found.model.weight_nbytes is not None
        for context, is_larger in ((at, True), (at - 1, False)):
            there = plan(name, context=context)
            assert (
                users * (there.main.kept_nbytes + there.model.state_nbytes) >= found.model.weight_nbytes
            ) is is_larger
    assert plan("mistral-7b").main.overtakes_at is None, "windows stop growing"


def test_memory_is_divided_without_a_rest() -> None:
    found = plan("llama-3-8b", machine="H100", context=8192)
    budget, memory = found.budget, found.main.memory
    assert budget is not None
    assert memory is not None
    assert budget.memory_nbytes == 80 * GIB == budget.weight_nbytes + budget.activation_nbytes + budget.cache_nbytes
    assert budget.activation_nbytes == found.activations.nbytes
    assert 0 <= budget.cache_nbytes - memory.nbytes < memory.geometries[0].page_nbytes
    assert found.main.users_by_memory == memory.num_pages[0] // (8192 // 32)


def test_seats_limit_who_runs_and_not_who_fits() -> None:
    found, more = (plan("llama-3-8b", machine="H200", context=2048, max_num_seqs=seats) for seats in (256, 1024))
    assert found.main.users == 256 < (found.main.users_by_memory or 0)
    assert more.main.users == more.main.users_by_memory


def test_a_shared_prefix_is_paid_once() -> None:
    options = {"machine": "H100", "context": 8192, "users": 10}
    alone, shared = plan("llama-3-8b", **options), plan("llama-3-8b", shared_prefix=4096, **options)
    assert alone.main.users_nbytes - shared.main.users_nbytes == 9 * 4096 * 128 * KIB
    assert shared.main.users_without_sharing == alone.main.users_by_memory
    assert (shared.main.users_by_memory or 0) > 1.9 * (alone.main.users_by_memory or 0)


def test_a_prefix_may_be_all_of_a_prompt_and_more() -> None:
    found = plan("llama-3-8b", machine="H100", context=1024, shared_prefix=1024, users=1000, max_num_seqs=2048)
    assert found.main.users_nbytes == (24 + 1000 * 8) * 32 * 128 * KIB
    assert (found.main.users_by_memory or 0) > 1024


def test_heads_are_divided_or_copied() -> None:
    """Of 8 KV heads each of 4 devices has 2; each of 16 has one, so that all are there twice; latents on every one."""
    whole, four, sixteen = (plan("llama-3-70b", gpus=gpus).sharding for gpus in (1, 4, 16))
    assert (whole.copies, four.copies, sixteen.copies) == (1, 1, 2)
    assert (four.nbytes_per_token, sixteen.nbytes_per_token) == (327_680 / 4, 327_680 / 8)
    assert plan("deepseek-v3", gpus=8).sharding.copies == 8
    assert plan("falcon-7b", gpus=2).sharding.copies == 2, "it has one KV head"
    found = plan("llama-3-70b", machine="H100", gpus=4, context=4096)
    assert found.budget is not None
    assert found.budget.weight_nbytes == 70_553_706_496 * 2 / 4


def test_states_are_divided_too() -> None:
    one, two = (plan("jamba-1.5-mini", gpus=gpus, context=4096).main for gpus in (1, 2))
    assert one.context_nbytes == two.context_nbytes


def test_every_format_is_told_of_and_some_cannot_be() -> None:
    found = plan("deepseek-v3")
    assert [each.name for each in found.formats] == list(FORMATS)
    obstacles = {each.name: each.obstacle for each in found.formats}
    assert "keys and values at once" in (obstacles["k8v4"] or "")
    assert obstacles["int8"] is None
    sizes = {each.name: each.nbytes_per_token for each in plan("llama-3-70b").formats}
    assert sizes["int8"] == sizes["auto"] / 2 * (1 + 2 / 128)


def test_waste_is_half_a_page_on_average() -> None:
    for each in plan("llama-3-70b", context=4096, block_size=48).waste:
        assert each.worst_nbytes == (each.page_tokens - 1) * 327_680
        assert each.expected_nbytes == each.worst_nbytes / 2
        assert each.share == each.expected_nbytes / (86 * 48 * 327_680)


def test_the_weights_of_a_checkpoint_are_those_that_are_stored() -> None:
    found = plan(EMBEDDED_MODEL)
    assert found.model.name == "tiny"
    stored = sum(file.stat().st_size for file in EMBEDDED_MODEL.glob("*.safetensors"))
    assert found.model.weight_nbytes == pytest.approx(stored, rel=0.01)
    assert found.model.parameters == (found.model.weight_nbytes or 0) / 2


def packed(folder: Path, kind: type, **changes: object) -> Path:
    """A folder of LLAMA whose matrices are packed into numbers of another kind, with their scales."""
    written(folder, **changes)
    tensors = {f"model.layers.{i}.q_proj.qweight": np.zeros((64, 8), kind) for i in range(2)}
    tensors |= {f"model.layers.{i}.q_proj.scales": np.zeros((2, 64), np.float32) for i in range(2)}
    tensors["model.embed_tokens.weight"] = np.zeros((50, 64), np.float16)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.int64, np.bool_])
def test_weights_in_fewer_bits_count_as_they_are_stored(tmp_path: Path, kind: type) -> None:
    folder = packed(tmp_path, kind, quantization_config={"bits": 4, "quant_method": "awq"})
    found = plan(folder)
    assert found.model.weight_nbytes == 2 * (64 * 8 * kind().itemsize + 2 * 64 * 4) + 50 * 64 * 2
    assert any("stored in awq and count as they are stored" in note for note in found.model.notes)


def test_weights_in_fewer_bits_are_seen_by_their_types_alone(tmp_path: Path) -> None:
    """Plain numbers then count in the precision of the model, as the engine keeps them."""
    found = plan(packed(tmp_path, np.int32))
    assert found.model.weight_nbytes == 2 * (64 * 8 * 4 + 2 * 64 * 2) + 50 * 64 * 2
    assert any("stored in I32 and count" in note for note in found.model.notes)


def test_weights_in_eight_bits_of_floats_count_as_they_are_decoded(tmp_path: Path) -> None:
    tensors = {"q.weight": torch.zeros(64, 64, dtype=torch.float8_e4m3fn), "q.weight_scale": torch.zeros(1)}
    save_torch(tensors, written(tmp_path, quantization_config={"quant_method": "fp8"}).parent / "model.safetensors")
    found = plan(tmp_path).model
    assert (found.weight_nbytes, found.weights_are) == (64 * 64 * 2, "decoded of fp8")


@pytest.mark.parametrize(("kind", "is_coded"), [(intx(4, 32), True), (float8((1, 0)), False)])
def test_what_has_no_codes_once_it_is_loaded_can_be_rounded(tmp_path: Path, kind: Packer, is_coded: bool) -> None:
    write_torchao(tmp_path, linear(kind))
    found, rounded = plan(tmp_path).model, plan(tmp_path, quantization="int4").model
    assert found.weights_are == ("as held of torchao" if is_coded else "decoded of torchao")
    assert any("have not run on a GPU yet" in note for note in found.notes) == is_coded
    assert rounded.weights_are == ("as held of torchao" if is_coded else "rounded to int4")


def test_rounded_weights_leave_more_to_pages_and_are_read_faster() -> None:
    plain, int8, int4 = (
        plan("llama-3-8b", machine="RTX 4090", context=8192, quantization=each) for each in ("none", "int8", "int4")
    )
    head = 128_256 * 4096 * 8.5 / 8
    keys_and_values = 32 * 2 * 4096 * 1024
    others = 32 * (2 * 4096 * 4096 + 3 * 4096 * 14336)
    norms = 65 * 4096 * 2
    assert int8.model.weight_nbytes == pytest.approx(2 * head + (keys_and_values + others) * 8.5 / 8 + norms, abs=2)
    expected = 2 * head + keys_and_values * 8.5 / 8 + others * 5 / 8 + norms
    assert int4.model.weight_nbytes == pytest.approx(expected, abs=2)
    assert int4.model.weights_are == "rounded to int4"
    assert int4.main.decode[0].weight_nbytes == pytest.approx((int4.model.weight_nbytes or 0) - head, abs=2)
    assert plain.main.users < int8.main.users < int4.main.users
    assert plain.prefill == int8.prefill, "no operation less"


def test_experts_are_rounded_and_read_in_part() -> None:
    found = plan("mixtral-8x7b", bandwidth="1TB/s", quantization="int4")
    experts = 32 * 8 * 3 * 4096 * 14336 * 5 / 8
    weights, read = found.model.weight_nbytes or 0, found.main.decode[0].weight_nbytes
    assert experts < weights < 1.05 * experts
    assert experts / 4 < read < experts / 4 + weights - experts, "two of eight"


def test_what_is_published_in_fewer_bits_can_be_rounded() -> None:
    found = plan("deepseek-v3", quantization="int8").model
    assert found.weights_are == "rounded to int8"
    assert not any("published" in note for note in found.notes)


def test_codes_are_not_rounded_again(tmp_path: Path) -> None:
    folder = packed(tmp_path, np.int32, quantization_config={"quant_method": "gptq"})
    found, left = plan(folder).model, plan(folder, quantization="int4").model
    assert left.weight_nbytes == found.weight_nbytes
    assert any("has codes already" in note for note in left.notes)


def test_weights_that_nobody_counts_cannot_be_rounded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nobody knows what int8 makes of them"):
        plan(written(tmp_path, model_type="unheard-of"), quantization="int8")


def test_a_step_reads_less_where_tokens_choose_pages() -> None:
    options = {"context": 32768, "bandwidth": "1TB/s", "memory": "40GiB", "output_tokens": 100}
    whole = plan("llama-3-8b", **options).main
    part = plan("llama-3-8b", sparse_attention="quest:tokens=2048", **options).main
    summaries = 2 * 128 * 2 * 8 + 1  # of a page, in a layer
    [geometry] = part.geometries
    assert geometry.summary_nbytes == 32 * summaries
    page = geometry.page_nbytes
    pages = 32768 // geometry.page_tokens
    read = 2 * 32768 * page / geometry.page_tokens / 32 + 30 * (
        2048 * page / geometry.page_tokens / 32 + pages * summaries
    )
    assert part.decode[0].cache_nbytes == pytest.approx(read, abs=1)
    assert whole.decode[0].cache_nbytes == 32768 * page / geometry.page_tokens
    assert part.context_nbytes - whole.context_nbytes == pages * 32 * summaries
    assert part.users_by_memory is not None
    assert part.users_by_memory <= (whole.users_by_memory or 0)


def test_a_budget_beyond_the_context_reads_all() -> None:
    found = plan("llama-3-8b", context=2048, bandwidth="1TB/s", sparse_attention="quest:tokens=2048").main
    assert (
        found.decode[0].cache_nbytes == plan("llama-3-8b", context=2048, bandwidth="1TB/s").main.decode[0].cache_nbytes
    )


def test_a_method_that_is_stated_of_the_text_part_is_noted(tmp_path: Path) -> None:
    text = LLAMA | {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}), encoding="utf-8")
    assert any("published in gptq" in note for note in plan(tmp_path).model.notes)


def test_a_family_that_nobody_knows_is_noted(tmp_path: Path) -> None:
    notes = plan(written(tmp_path, model_type="new_family")).model.notes
    assert any("'new_family' is not known: every layer is taken to keep all tokens" in note for note in notes)
    kinds = ["full_attention", "sliding_attention"]
    notes = plan(written(tmp_path, model_type="new_family", layer_types=kinds, sliding_window=64)).model.notes
    assert any("what layer_types and heads say" in note for note in notes)
    assert not any("not known" in note for note in plan(written(tmp_path)).model.notes)


def test_a_family_under_another_name_is_planned_as_what_it_is(tmp_path: Path) -> None:
    said = plan("deepseek-v3")
    config = json.loads((FOLDER / "deepseek-v3.json").read_text(encoding="utf-8")) | {"model_type": "kimi_k2"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = plan(tmp_path)
    assert (found.main.groups, found.model.parameters) == (said.main.groups, said.model.parameters)
    assert "kimi_k2 has the architecture of deepseek_v3, and is planned as it is." in found.model.notes


def test_a_folder_with_a_configuration_alone_is_enough(tmp_path: Path) -> None:
    file = written(tmp_path)
    assert plan(tmp_path).main == plan(str(file)).main
    assert plan(file).model.weight_nbytes == plan(file).model.parameters * 2  # type: ignore[operator]


def test_what_is_left_out_of_a_shipped_configuration_is_said() -> None:
    assert "Left out is its vision part, 0.4 G weights more." in plan("gemma-3-27b").model.notes
    assert plan("llama-3-8b").model.notes == ()


@pytest.mark.parametrize("spelling", ["llama-3-70b", "Llama 3 70B", "meta-llama/Llama-3-70B", "Meta-Llama-3-70B"])
def test_names_are_found_however_they_are_spelled(spelling: str) -> None:
    assert plan(spelling).model.name == "llama-3-70b"


def test_an_unknown_name_lists_those_near() -> None:
    with pytest.raises(ModelNotFoundError, match=r"near it are .*llama-3-70b"):
        plan("llama-3-7b")
    with pytest.raises(ModelNotFoundError, match="--list"):
        plan("???")


def test_what_a_configuration_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no hidden_size, no num_attention_heads; a plan needs them"):
        plan(written(tmp_path, hidden_size=None, num_attention_heads=None))
    with pytest.raises(UnsupportedModelError, match=r"no num_hidden_layers, .*no model_type"):
        plan(written(tmp_path, **dict.fromkeys(LLAMA)))
    with pytest.raises(UnsupportedModelError, match="has no qk_rope_head_dim"):
        plan(written(tmp_path, model_type="deepseek_v3", kv_lora_rank=16))
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CorruptCheckpointError, match="not valid JSON"):
        plan(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": "wide"},
        {"hidden_size": -64},
        {"num_attention_heads": -4},
        {"num_hidden_layers": 10**9},
        {"intermediate_size": "wide"},
        {"intermediate_size": "wide", "model_type": "stablelm"},
        {"vocab_size": [5]},
        {"text_config": 5},
        {"layer_types": ["full_attention"] * 2, "head_dim": "x"},
        {"quantization_config": "none"},
    ],
    ids=repr,
)
def test_nonsense_in_a_configuration_is_a_named_error(tmp_path: Path, values: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        plan(written(tmp_path, **values), memory="1GiB", flops="1TFLOPS", bandwidth="1GB/s", weights="1MiB")


def test_positions_that_can_be_stretched_are(tmp_path: Path) -> None:
    scaling = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}
    file = written(tmp_path, rope_scaling=scaling, original_max_position_embeddings=512)
    usual, asked = (plan(file, memory="1GiB", context=context) for context in (None, 2048))
    assert (usual.context, asked.context) == (512, 2048)
    assert asked.main.users_by_memory


def test_weights_of_a_family_that_is_not_counted_are_asked_for(tmp_path: Path) -> None:
    file = written(tmp_path, model_type="stablelm")
    assert plan(file).model.weight_nbytes is None
    with pytest.raises(ConfigError, match="--weights 14GiB"):
        plan(file, memory="1GiB")
    found = plan(file, memory="1GiB", weights="100MiB", bandwidth="1GB/s", context=1024)
    assert found.model.weight_nbytes == 100 * MIB
    assert found.main.decode[0].weight_nbytes == 100 * MIB, "nothing is known of what is not read"


def test_memory_that_is_too_small_says_by_how_much() -> None:
    with pytest.raises(ConfigError, match=r"a device has 80 GiB, 52.1 GiB less than its weights .* --gpus 2"):
        plan("llama-3-70b", machine="H100")
    assert plan("llama-3-70b", machine="H100", gpus=2).budget is not None
    with pytest.raises(ConfigError, match=r"here they count in bfloat16"):
        plan("deepseek-v3", machine="H100", dtype="bfloat16")
    with pytest.raises(ConfigError, match="too little; give more memory"):
        plan("llama-3-70b", kv_cache_memory_bytes="1MiB")


@pytest.mark.parametrize(
    ("model", "memory"),
    [("llama-3-70b", "24GiB"), ("qwen2.5-7b", "10GiB"), ("gpt-oss-120b", "24GiB"), ("mamba-2.8b", "6GiB")],
)
def test_as_many_devices_are_named_as_are_enough_and_divide_the_heads(model: str, memory: str) -> None:
    with pytest.raises(ConfigError, match="does not fit") as error:
        plan(model, memory=memory)
    named = re.search(r"Try --gpus (\d+)", str(error.value))
    assert named is not None
    found = plan(model, memory=memory, gpus=int(named[1]))
    assert found.main.users_by_memory
    assert not any("query heads cannot be divided" in note for note in found.sharding.notes)


def test_more_memory_is_named_where_no_number_of_devices_is_enough() -> None:
    with pytest.raises(ConfigError, match="Try more memory, or weights in fewer bytes"):
        plan("llama-3-70b", memory="1GiB")


def test_devices_that_do_not_divide_the_heads_are_noted() -> None:
    notes = plan("qwen2.5-7b", gpus=3).sharding.notes
    assert any("28 query heads cannot be divided evenly by 3" in note and "2, 4, 7, 14, 28" in note for note in notes)
    assert not any("query heads" in note for note in plan("qwen2.5-7b", gpus=7).sharding.notes)


def test_the_longest_context_is_the_models_own_whatever_is_asked_about() -> None:
    found = plan("llama-3-8b", machine="H100", context=100_000)
    assert (found.model.max_model_len, found.main.longest_context, found.main.limited_by) == (8192, 8192, "the model")
    assert found.main.users_by_memory


def test_a_context_beyond_the_model_is_planned_and_noted() -> None:
    found = plan("llama-3-70b", context=N)
    assert found.main.kept_nbytes == 40 * GIB
    assert any("takes at most 8,192 tokens" in note for note in found.model.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "lots"}, "write bytes, or a number with a unit such as 512MiB"),
        ({"memory": 0}, "give a positive number"),
        ({"memory": -5}, "give a positive number"),
        ({"memory": float("nan")}, "give a positive number"),
        ({"bandwidth": "fast"}, "as 3.35TB/s or 900GB/s"),
        ({"bandwidth": "3TB"}, "as 3.35TB/s or 900GB/s"),
        ({"flops": "990T"}, "as 990TFLOPS or 67GFLOPS"),
        ({"context": 0}, "context is 0; give a whole number from 1"),
        ({"context": 1.5}, "context is 1.5; give a whole number"),
        ({"users": -1}, "users is -1"),
        ({"gpus": 0}, "gpus is 0"),
        ({"context": 100, "output_tokens": 101}, "are parts of it"),
        ({"context": 100, "shared_prefix": 101}, "are parts of it"),
        ({"encoder_tokens": 5}, "has no encoder"),
        ({"gpus": None}, "gpus is None"),
        ({"gpus": True}, "gpus is True"),
        ({"machine": 5}, "machine is 5"),
        ({"kv_cache_dtype": 5}, "kv_cache_dtype is 5"),
        ({"kv_cache_dtype": (5,)}, "give the name of a format, or several"),
        ({"memory": [5]}, "give a positive number"),
        ({"memory": True}, "give a positive number"),
        ({"dtype": 5}, "dtype is 5"),
        ({"kv_cache_dtype": "int3"}, "no format named 'int3'"),
        ({"kv_cache_dtype": ("auto", "int3")}, "no format named 'int3'"),
        ({"block_size": 17}, "multiple of 16"),
        ({"quantization": "int2"}, "quantization is 'int2'; choose one of: none, int8, int4"),
        ({"quantization": "int4", "weights": "4GiB"}, "both say what weights take"),
        ({"sparse_attention": "quest"}, "quest needs a budget"),
        ({"sparse_attention": "quest:tokens=16"}, "the first and the last one are always read"),
        ({"sparse_attention": 5}, "sparse_attention is 5"),
        ({"sparse_attention": "quest:tokens=512", "kv_compression": "snapkv:tokens=1024"}, "leave one of the two out"),
        ({"dtype": "int3"}, "choose one of: auto"),
        ({"machine": "H1000"}, "did you mean H100"),
        ({"contxt": 5}, "did you mean context"),
    ],
    ids=repr,
)
def test_nonsense_says_what_is_taken(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan("llama-3-8b", **options)


def test_numbers_of_any_kind_are_taken() -> None:
    """Also those of numpy, and sizes with a fraction."""
    given = plan("llama-3-8b", memory=80.5 * GIB, context=np.int64(4096), bandwidth=np.float32(1e12), users=np.int32(2))
    assert given.main.users == plan("llama-3-8b", memory="80.5GiB", context=4096).main.users
    assert json.dumps(given.as_json())


def test_everything_can_be_written_as_json() -> None:
    for name in ("llama-3-8b", "gemma-3-27b", "deepseek-v3", "jamba-1.5-mini", "mamba-2.8b", "whisper-large-v3"):
        found = plan(name, machine="B200", gpus=16)
        told = json.loads(json.dumps(found.as_json()))
        assert told["formats"][0]["nbytes_per_token"] == found.main.nbytes_per_token
        assert told["formats"][0]["decode"][0]["tokens_per_second"] > 0
        assert told["machine"]["name"] == "B200"


def test_a_plan_loads_neither_torch_nor_transformers() -> None:
    program = """
import sys
import pagoda
pagoda.plan("llama-3-70b", machine="H100", gpus=4, context=4096)
pagoda.plan("llama-3-8b", quantization="int4", sparse_attention="quest:tokens=2048")
sys.exit(bool({"torch", "transformers"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_gguf_file_is_planned_as_it_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("pagoda.checkpoint.gguf_description._confined", Unconfined)
    written = write_gguf(tmp_path / "tiny-Q8_0.gguf")
    for path in (written.file, tmp_path):
        found = plan(path).model
        assert (found.name, found.weights_are) == (
            "tiny-Q8_0" if path == written.file else tmp_path.name,
            "as stored in Q8_0",
        )
        assert found.parameters == sum(parameter.numel() for parameter in written.network.parameters())
        assert found.weight_nbytes < 1.2 * found.parameters
