"""Plans from facts alone: what a budget becomes, equal to what an engine starts with, and without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pagoda import LLM
from pagoda.config import DEFAULT_KV_CACHE_NBYTES, EngineConfig, TenantShare
from pagoda.errors import ConfigError
from pagoda.llm import EMBEDDED_MODEL
from pagoda.planning.checkpoint import facts_from_checkpoint, facts_from_config
from pagoda.planning.facts import MachineFacts, ModelFacts
from pagoda.planning.limits import TenantLimits
from pagoda.planning.memory import plan_memory
from pagoda.registry import names

MIB = 1 << 20
MACHINE = MachineFacts(1 << 30)
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
}
WINDOWS = LLAMA | {"model_type": "gemma2", "head_dim": 16, "sliding_window": 64}
HYBRID = LLAMA | {
    "model_type": "bamba",
    "attn_layer_indices": [3],
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
}
T5 = {
    "model_type": "t5",
    "is_encoder_decoder": True,
    "d_model": 64,
    "num_heads": 4,
    "d_kv": 16,
    "num_layers": 2,
    "vocab_size": 200,
    "relative_attention_num_buckets": 8,
}
CONFIGS = {"llama": LLAMA, "windows": WINDOWS, "hybrid": HYBRID, "t5": T5}


def facts_of(name: str) -> ModelFacts:
    return facts_from_config(CONFIGS[name], MACHINE)


@pytest.mark.parametrize("format", names("format"))
@pytest.mark.parametrize("name", CONFIGS)
def test_a_plan_stays_within_its_budget_and_uses_it(name, format):
    budget = 16 * MIB
    memory = plan_memory(facts_of(name), MACHINE, EngineConfig(kv_cache_dtype=format, kv_cache_memory_bytes=budget))
    assert 0.95 * budget < memory.nbytes <= budget
    assert all(memory.num_pages)
    assert (memory.states is not None) == (name == "hybrid")
    assert (memory.max_encoder_len is not None) == (name == "t5")


@pytest.mark.parametrize(("available", "budget"), [(10 * MIB, 4 * MIB), (1 << 40, DEFAULT_KV_CACHE_NBYTES)])
def test_the_machine_decides_where_nobody_says_how_much(available, budget):
    config = EngineConfig()
    memory = plan_memory(facts_of("llama"), MachineFacts(available), config)
    assert budget - memory.geometries[0].page_nbytes < memory.nbytes <= budget
    assert plan_memory(facts_of("llama"), MachineFacts(None), config).nbytes <= DEFAULT_KV_CACHE_NBYTES


def test_an_engine_starts_with_the_plan_of_its_checkpoint():
    options = {"kv_cache_memory_bytes": 8 * MIB, "kv_cache_dtype": "int8"}
    with LLM(EMBEDDED_MODEL, num_threads=1, **options) as llm:
        assert llm.engine.memory == plan_memory(
            facts_from_checkpoint(EMBEDDED_MODEL, MACHINE), MACHINE, EngineConfig(**options)
        )


def test_limits_follow_from_a_plan_alone():
    config = EngineConfig(kv_cache_memory_bytes=8 * MIB, tenants={"a": TenantShare(page_quota=0.75)})
    memory = plan_memory(facts_of("llama"), MACHINE, config)
    (geometry,), (num_pages,) = memory.geometries, memory.num_pages
    limits = TenantLimits(memory, config)
    assert limits.max_len("a") == memory.max_model_len == 4096
    assert limits.max_len("b") == min((num_pages - int(0.75 * num_pages)) * geometry.page_tokens, 4096)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="less than one page"):
        plan_memory(facts_of("llama"), MACHINE, EngineConfig(kv_cache_memory_bytes=100))
    with pytest.raises(ConfigError, match="the model takes at most 4096 tokens"):
        plan_memory(facts_of("llama"), MACHINE, EngineConfig(max_model_len=4097))


def test_a_plan_needs_neither_torch_nor_transformers():
    """Not even for the sizes of every format."""
    program = f"""
import sys
from pagoda.config import EngineConfig
from pagoda.planning.checkpoint import facts_from_checkpoint
from pagoda.planning.facts import MachineFacts
from pagoda.planning.memory import plan_memory
from pagoda.registry import names
machine = MachineFacts.measured()
facts = facts_from_checkpoint({str(EMBEDDED_MODEL)!r}, machine)
for format in names("format"):
    assert plan_memory(facts, machine, EngineConfig(kv_cache_dtype=format)).nbytes_per_token > 0
sys.exit(bool({{"torch", "transformers"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
