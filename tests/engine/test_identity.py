"""What pages are called outside of the process depends on all that decides their bytes."""

from __future__ import annotations

from typing import Any

import pytest

from engine.tiny import tiny_model
from pagoda import LLM
from pagoda.cache.prefix.names import Identity
from pagoda.cache.prefix.namespace import Namespace
from pagoda.models.loader import model_from_config

TOKENS = list(range(64))


def name(model: Any = None, **options: Any) -> bytes:
    """Of the first page of some tokens."""
    with LLM(tiny_model() if model is None else model, num_threads=1, **{"block_size": 16, **options}) as llm:
        return next(llm.engine.page_names.of_tokens(Namespace(), TOKENS))


def test_engines_of_one_kind_have_the_same_names() -> None:
    assert name() == name(max_num_seqs=3, kv_cache_memory_bytes=1 << 20, max_model_len=100)


@pytest.mark.parametrize("options", [{"kv_cache_dtype": "int8"}, {"block_size": 32}])
def test_other_bytes_have_other_names(options: dict[str, Any]) -> None:
    assert name(**options) != name()


def test_other_weights_have_other_names() -> None:
    model = tiny_model()
    assert name(model_from_config(model.config, dtype="float32", seed=1)) != name()


def test_other_rotations_have_other_names() -> None:
    config = tiny_model().config
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 5.0}
    assert name(model_from_config(config, dtype="float32", seed=0)) != name()


def test_one_other_number_is_another_model() -> None:
    changed = tiny_model()
    changed.network.get_input_embeddings().weight.data[3, 5] += 1
    assert name(changed) != name()


def test_another_setting_is_another_model() -> None:
    config = tiny_model().config
    config.rms_norm_eps = 0.5
    assert name(model_from_config(config, dtype="float32", seed=0)) != name()


def test_layouts_and_formats_can_be_read() -> None:
    def identity(**options: Any) -> Identity:
        with LLM(tiny_model(), num_threads=1, block_size=16, **options) as llm:
            return llm.engine.page_names.identity

    plain = identity()
    assert (plain.format, plain.page_tokens) == ("fp32", 16)
    assert plain.layout == "full: 2 x AttentionLayout(num_kv_heads=2, key_width=16, value_width=16)"
    assert identity(kv_cache_dtype="int8", kv_cache_dtype_skip_layers=(1,)).format == "1 x int8, 1 x fp32"
