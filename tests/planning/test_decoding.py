"""What decoding reads: the bytes that the engine's own pages have, in its format and in others."""

from __future__ import annotations

import pytest

from oracle.families import build_tiny
from pagoda import LLM, SamplingParams
from pagoda.config import EngineConfig
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.models.model import Model
from pagoda.planning.decoding import DecodeCosts, decode_costs
from pagoda.planning.facts import MachineFacts
from pagoda.planning.memory import MemoryPlan, plan_memory

LAYER = (AttentionLayout(2, 64, 64),)


def planned(family: str, kv_cache_dtype: str = "auto") -> tuple[Model, MemoryPlan, DecodeCosts]:
    model = Model.from_transformers(build_tiny(family))
    config = EngineConfig(kv_cache_memory_bytes=64 << 20, kv_cache_dtype=kv_cache_dtype)
    memory = plan_memory(model.facts, MachineFacts.measured(), config)
    return model, memory, decode_costs(model.facts, memory, config)


@pytest.mark.parametrize("family", ["llama", "gemma2", "deepseek_v2", "jamba"])
def test_bytes_are_those_of_the_allocator(family: str) -> None:
    model, memory, costs = planned(family)
    reads = costs.reads(context=4)  # inside every window
    assert sum(reads.groups.values()) == pytest.approx(4 * memory.nbytes_per_token)
    assert reads.weights == model.weight_nbytes
    assert reads.states == (memory.states.geometry.page_nbytes if memory.states else 0)


def test_other_formats_have_the_bytes_that_an_engine_of_theirs_would_have() -> None:
    reads = planned("llama")[2].reads(context=100)
    assert set(reads.others) == {"int8", "int4"}
    for name, nbytes in reads.others.items():
        assert nbytes == pytest.approx(100 * planned("llama", name)[1].nbytes_per_token)
    assert reads.speed_up("int4") > reads.speed_up("int8") > 1
    assert reads.speed_up("int8") == pytest.approx(reads.total / (reads.weights + reads.others["int8"]))
    assert set(planned("llama", "int8")[2].reads(1).others) == {"int4"}
    assert not planned("llama", "int4")[2].reads(1).others


def test_a_batch_shares_the_weights_and_nothing_else() -> None:
    costs = planned("llama")[2]
    alone, beside = costs.reads(100), costs.reads(100, batch=4)
    assert beside.weights == alone.weights / 4
    assert beside.groups == alone.groups


def test_a_model_without_pages_reads_its_states() -> None:
    _, memory, costs = planned("mamba")
    reads = costs.reads(1000)
    assert memory.states is not None
    assert (reads.groups, reads.cache, reads.others) == ({}, memory.states.geometry.page_nbytes, {})


def test_layers_that_share_a_cache_read_it_each() -> None:
    model, memory, costs = planned("gemma3n_text")
    readers = [site for site in model.spec.sites if not site.writes]
    assert readers
    assert sum(costs.reads(4).groups.values()) > 4 * memory.nbytes_per_token


@pytest.mark.parametrize(
    ("group", "context", "num_tokens"),
    [
        (LayerGroup(Reach.FULL, None, LAYER), 1000, 1000),
        (LayerGroup(Reach.SLIDING, 128, LAYER), 1000, 127),
        (LayerGroup(Reach.SLIDING, 128, LAYER), 100, 100),
        (LayerGroup(Reach.SLIDING, 128, LAYER, sink_tokens=4), 1000, 131),
        (LayerGroup(Reach.SLIDING, 128, LAYER, sink_tokens=4), 100, 100),
        (LayerGroup(Reach.CHUNKED, 128, LAYER), 300, 300 - 256),
        (LayerGroup(Reach.ENCODER, None, LAYER), 1000, 1500),
    ],
)
def test_windows_read_what_they_reach(group: LayerGroup, context: int, num_tokens: int) -> None:
    costs = DecodeCosts(0, 0, (group,), {"": (10.0,), "int8": (5.0,)})
    reads = costs.reads(context, num_encoder_tokens=1500)
    assert reads.groups == {group.name: 10.0 * num_tokens}
    assert reads.others == {"int8": 5.0 * num_tokens}


def test_an_output_knows_what_its_tokens_read() -> None:
    with LLM(kv_cache_memory_bytes=8 << 20) as llm:
        output = llm.generate([list(range(1, 101))], SamplingParams(max_tokens=20, ignore_eos=True))[0]
        single = llm.generate([list(range(1, 101))], SamplingParams(max_tokens=1))[0]
        nbytes_per_token, weight_nbytes = llm.engine.memory.nbytes_per_token, llm.engine.model.weight_nbytes
    reads = output.time.reads
    assert reads.weights == weight_nbytes
    assert sum(reads.groups.values()) == pytest.approx(110 * nbytes_per_token)
    assert output.verdict[0].startswith("The first token took ")
    assert any(each.startswith("Decode reads ") for each in output.verdict)
    assert single.time.reads is None
