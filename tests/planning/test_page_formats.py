"""Which format each layer is kept in: pairs, formats by reach, layers left out, and what is refused."""

from __future__ import annotations

import pytest
from transformers import Gemma2Config, LlamaConfig

from pagoda.config import EngineConfig
from pagoda.errors import ConfigError
from pagoda.models.loader import model_from_config
from pagoda.models.model import Model
from pagoda.planning.page_formats import choose_geometries

SIZES = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "eos_token_id": None,
    "bos_token_id": None,
}


@pytest.fixture(scope="module")
def llama() -> Model:
    return model_from_config(LlamaConfig(**SIZES), dtype="bfloat16", seed=0)


@pytest.fixture(scope="module")
def gemma() -> Model:
    """Layers alternate between windows of 8 tokens and none."""
    return model_from_config(Gemma2Config(**SIZES, sliding_window=8, pad_token_id=0), dtype="bfloat16", seed=0)


def chosen(model: Model, kv_cache_dtype: str = "auto", skipped: tuple[int | str, ...] = ()) -> list[list[str]]:
    """The formats of the layers of every group."""
    config = EngineConfig(kv_cache_dtype=kv_cache_dtype, kv_cache_dtype_skip_layers=skipped)
    return [
        [geometry.format_of(layer).name for layer in range(len(geometry.slots))]
        for geometry in choose_geometries(model.facts, config)
    ]


def test_auto_is_the_models_own_precision(llama):
    assert chosen(llama) == [["bf16"] * 4]


def test_names_of_others_work(llama):
    assert chosen(llama, "bfloat16") == [["bf16"] * 4]
    assert chosen(llama, "fp8") == [["fp8_e4m3"] * 4]


def test_keys_and_values_may_have_two_formats(llama):
    assert chosen(llama, "int8/int4") == [["k8v4"] * 4]
    assert chosen(llama, "bf16/int8") == [["bf16/int8"] * 4]
    assert chosen(llama, "auto/int8") == [["bf16/int8"] * 4]
    assert chosen(llama, "int4/int4") == [["int4"] * 4]


def test_layers_may_be_left_out(llama):
    assert chosen(llama, "int4", (0, "3")) == [["bf16", "int4", "int4", "bf16"]]
    assert chosen(llama, "int4", (0, 1, 2, 3)) == [["bf16"] * 4]


def test_formats_go_by_reach(gemma):
    assert sorted(chosen(gemma, "full=int8,sliding=int4")) == [["int4"] * 2, ["int8"] * 2]
    assert sorted(chosen(gemma, "full=int8")) == [["bf16"] * 2, ["int8"] * 2]
    assert sorted(chosen(gemma, "int8", ("sliding",))) == [["bf16"] * 2, ["int8"] * 2]


def test_pages_take_the_bytes_of_their_layers(llama):
    some, none, all = (
        choose_geometries(llama.facts, EngineConfig(kv_cache_dtype=name, kv_cache_dtype_skip_layers=skipped))[0]
        for name, skipped in (("int8", (1,)), ("bf16", ()), ("int8", ()))
    )
    assert some.page_nbytes == (3 * all.page_nbytes + none.page_nbytes) // 4
    assert some.format_name == "int8, 1 layers not"


@pytest.mark.parametrize(
    ("kv_cache_dtype", "message"),
    [
        ("fp32/int8", r"keys in fp32 and values in int8: mix bf16"),
        ("k8v4/int8", r"keys in k8v4"),
        ("int8/int3", r"no format named 'int3'"),
        ("full=int8,sliding=int3", r"no format named 'int3'"),
        ("near=int8", r"give one format, or formats by reach.*full, sliding, chunked"),
        ("full=", r"give one format"),
    ],
)
def test_what_cannot_be_is_refused(llama, kv_cache_dtype, message):
    with pytest.raises(ConfigError, match=message):
        chosen(llama, kv_cache_dtype)


@pytest.mark.parametrize("skipped", [(4,), (-1,), ("sliding",)])
def test_a_layer_that_is_not_there_is_refused(llama, skipped):
    with pytest.raises(ConfigError, match="layers are 0 to 3, and full stands for all"):
        chosen(llama, "int8", skipped)
