"""Options of LLM of the wrong type, size or name: named errors before anything is loaded."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagoda import LLM
from pagoda.config import TenantShare, engine_config
from pagoda.errors import ConfigError, ModelError, ModelNotFoundError, PagodaError

WRONG: list[tuple[str, Any]] = [
    *(
        (name, value)
        for name in ("block_size", "max_num_seqs", "num_threads", "seed")
        for value in (2.5, True, "2", b"2")
    ),
    *(("kv_cache_memory_bytes", value) for value in ("4G", 1.5, True, 0, -1, 10**30)),
    *(("max_model_len", value) for value in ("10", 1.5, 0)),
    *(("max_num_batched_tokens", value) for value in (None, "1", 0)),
    *(("snapshot_memory_share", value) for value in ("x", float("nan"), None, 1)),
    *(("dtype", value) for value in (5, None, "int8", ["float32"])),
    *(("kv_cache_dtype", value) for value in (5, None, ["int8"])),
    *(("kv_cache_dtype_skip_layers", value) for value in (5, "sliding", [1.5], None)),
    *(("enable_prefix_caching", value) for value in ("no", 1, None)),
    *(("tenants", value) for value in (5, {"a": 5}, ["a"])),
    ("eviction_policy", 5),
    ("environment", 5),
    ("num_threads", 10**6),
    ("dtype", np.array(["a", "b"])),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=repr)
def test_wrong_options_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        engine_config(**{name: value})


def test_numbers_are_python_s_own() -> None:
    config = engine_config(block_size=np.uint8(32), seed=np.int64(4), max_model_len=np.uint8(200))
    assert [type(each) for each in (config.block_size, config.seed, config.max_model_len)] == [int] * 3


@pytest.mark.parametrize(
    "wrong",
    [{"weight": value} for value in ("x", None, True, 0, 1e308, 1e-300, float("nan"), Decimal(2))]
    + [{"page_quota": value} for value in ("a", None, 2, float("nan"), np.array([0.1, 0.2]))],
    ids=str,
)
def test_what_is_no_share_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TenantShare(**wrong)


@pytest.mark.parametrize("name", ["max_model_length", "kv_cache_type", "max_num_sequences"])
def test_a_name_that_is_almost_one_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        LLM(**{name: 5})


def test_a_name_that_is_none_tells_which_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"There is no option 'tensor_parallel_size'; there are: dtype, .*num_threads"
    ):
        LLM(tensor_parallel_size=1)


def test_more_memory_than_there_is_is_a_named_error() -> None:
    with pytest.raises(ConfigError, match="lower kv_cache_memory_bytes"):
        LLM(kv_cache_memory_bytes=10**18)


@pytest.mark.parametrize("path", [5, b"x", [], object(), "", "a\0b", "x" * 5000, "no/such/directory"])
@pytest.mark.parametrize("option", ["model", "tokenizer"])
def test_what_is_no_path_is_a_named_error(option: str, path: Any) -> None:
    with pytest.raises((ConfigError, ModelNotFoundError)):
        LLM(**{option: path}, kv_cache_memory_bytes=8 << 20)


def test_a_directory_without_a_tokenizer_is_none_for_one(tmp_path: Path) -> None:
    with pytest.raises(PagodaError, match="no tokenizer in"):
        LLM(tokenizer=tmp_path, kv_cache_memory_bytes=8 << 20)


def test_a_broken_gguf_file_is_a_named_error(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(64))
    for path in (file, tmp_path):
        with pytest.raises(ModelError, match=r"model\.gguf"):
            LLM(path)
