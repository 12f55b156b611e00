"""Every family through the whole engine against Hugging Face `generate()`: greedy tokens and logits, in fp32.

Each prompt runs cold, warm, in chunks of odd size beside others, and on a pool so small that sequences are preempted.
"""

from __future__ import annotations

from typing import Any

import pytest

from oracle import families
from oracle.generation import PARAMS, check, expect, random_tokens
from pagoda import LLM
from pagoda.formats.state import StateGeometry
from pagoda.models.model import Model

LONG = random_tokens(37, 0)
PROMPTS = (LONG, LONG[:21] + random_tokens(3, 1), random_tokens(14, 2), random_tokens(15, 3))


def make(model: Model, num_pages: int, **options: Any) -> LLM:
    """An engine with memory for so many pages, and for two recurrent states."""
    nbytes = num_pages * 16 * 4 * model.spec.elements_per_token
    if model.spec.states:
        nbytes += 2 * StateGeometry(model.spec.states, 4).page_nbytes
    return LLM(model, block_size=16, kv_cache_memory_bytes=nbytes, num_threads=1, **options)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_greedy_generation_equals_hugging_face(family: str) -> None:
    network = families.build_tiny(family)
    expected = [expect(network, prompt) for prompt in PROMPTS]
    model = Model.from_transformers(network)
    with make(model, num_pages=64) as llm:
        for _ in ("cold", "warm"):
            check(llm.generate(PROMPTS[0], PARAMS)[0], expected[0])
        assert llm.cache_stats().hit_tokens == len(PROMPTS[0]) - 1
    with make(model, num_pages=64, max_num_seqs=4, max_num_batched_tokens=11) as llm:
        for output, expectation in zip(llm.generate(PROMPTS, PARAMS), expected, strict=True):
            check(output, expectation)
        llm.check_integrity()
    with make(model, num_pages=3, max_num_seqs=2, snapshot_memory_share=0.0) as llm:
        outputs = llm.generate(PROMPTS[2:], PARAMS)
        for output, expectation in zip(outputs, expected[2:], strict=True):
            check(output, expectation)
        assert not model.spec.groups or sum(output.metrics.num_preemptions for output in outputs) > 0
        llm.check_integrity()
