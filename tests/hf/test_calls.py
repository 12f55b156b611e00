"""What a PagedCache cannot do it says by name, before anything is computed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, DynamicCache, T5Config

from hf.prompts import GREEDY, Counted, prompt
from hf.tiny_models import VOCABULARY, llama
from oracle import families
from pagoda.errors import (
    ConfigError,
    NonFiniteCacheError,
    OutOfPagesError,
    UnsupportedCallError,
    UnsupportedModelError,
)
from pagoda.hf import PagedCache

IDS = prompt(5, 0)
HOLES = torch.ones_like(IDS)
HOLES[:, 3] = 0
RIGHT = torch.ones_like(IDS)
RIGHT[:, -1] = 0
LEFT = torch.ones_like(IDS)
LEFT[:, 0] = 0

CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "embeddings": ({"inputs_embeds": torch.zeros(1, 4, 64)}, "inputs_embeds"),
    "no cache": ({"input_ids": IDS, "use_cache": False}, "use_cache"),
    "labels": ({"input_ids": IDS, "labels": IDS}, "labels"),
    "holes": ({"input_ids": IDS, "attention_mask": HOLES}, "padding_side"),
    "right padding": ({"input_ids": IDS, "attention_mask": RIGHT}, "padding_side"),
    "a mask of its own": ({"input_ids": IDS, "attention_mask": torch.ones(1, 1, 75, 75)}, "two dimensions"),
    "padding that counts": ({"input_ids": IDS, "attention_mask": LEFT}, "position_ids"),
    "other positions": ({"input_ids": IDS, "position_ids": 2 * torch.arange(75)[None]}, "position_ids"),
    "a beginning that was not seen": ({"input_ids": IDS, "attention_mask": torch.ones(1, 80)}, "reset"),
}


@pytest.fixture(scope="module")
def network() -> Any:
    return llama()


@pytest.mark.parametrize(("arguments", "reason"), CALLS.values(), ids=CALLS)
def test_calls_that_pages_would_be_wrong_for(network: Any, arguments: dict[str, Any], reason: str) -> None:
    with PagedCache(network, kv_cache_memory_bytes=1 << 20) as cache, Counted(network) as counted:
        with pytest.raises(UnsupportedCallError, match=reason):
            network(past_key_values=cache, **arguments)
        assert counted.num_tokens == 0
        expected = network.generate(IDS, **GREEDY)
        assert network.generate(IDS, past_key_values=cache, **GREEDY).equal(expected)  # it is as good as before


def test_training(network: Any) -> None:
    with PagedCache(network, kv_cache_memory_bytes=1 << 20) as cache:
        network.train()
        try:
            with pytest.raises(UnsupportedCallError, match="eval"):
                network(IDS, past_key_values=cache)
        finally:
            network.eval()


def test_another_model_and_a_closed_cache(network: Any) -> None:
    cache = PagedCache(network, kv_cache_memory_bytes=1 << 20)
    for stranger in (llama(), network.model):
        with pytest.raises(UnsupportedCallError, match="another model"):
            stranger(IDS, past_key_values=cache)
    cache.close()
    cache.close()
    with pytest.raises(UnsupportedCallError, match="closed"):
        network.generate(IDS, past_key_values=cache, **GREEDY)


def test_copies(network: Any) -> None:
    with PagedCache(network, kv_cache_memory_bytes=1 << 20) as cache, pytest.raises(UnsupportedCallError, match="save"):
        copy.deepcopy(cache)


def test_calls_with_other_caches_are_let_alone(network: Any) -> None:
    with PagedCache(network, kv_cache_memory_bytes=1 << 20) as cache:
        network.generate(IDS, past_key_values=cache, **GREEDY)
        before = cache.stats()
        expected = network(IDS, past_key_values=DynamicCache(config=network.config)).logits
        assert expected.shape[1] == IDS.shape[1]
        assert cache.stats() == before


def test_logits_that_are_asked_for_are_computed(network: Any) -> None:
    with PagedCache(network, kv_cache_memory_bytes=1 << 20) as cache, torch.no_grad():
        for wanted, num_logits in ((None, 75), (None, 1), (4, 4), (0, 75)):
            asked = {} if wanted is None else {"logits_to_keep": wanted}
            logits = network(IDS, past_key_values=cache, **asked).logits
            assert logits.shape[1] == num_logits
            torch.testing.assert_close(logits[:, -1], network(IDS).logits[:, -1])
            cache.reset()


def test_more_tokens_than_there_is_room_for(network: Any) -> None:
    with PagedCache(network, kv_cache_memory_bytes=4 * 16 * 2 * 2 * 32 * 4, block_size=16) as cache:
        with Counted(network) as counted, pytest.raises(OutOfPagesError, match="kv_cache_memory_bytes"):
            network.generate(IDS, past_key_values=cache, **GREEDY)
        assert counted.num_tokens == 0
        cache.check_integrity()
        assert network.generate(IDS[:, :30], past_key_values=cache, **GREEDY).shape[1] == 50


def test_a_model_that_fails_leaves_no_pages() -> None:
    model = llama()
    with PagedCache(model, kv_cache_memory_bytes=1 << 20) as cache:
        weight = model.model.layers[1].self_attn.k_proj.weight
        with torch.no_grad():
            weight[0, 0] = torch.nan
        with pytest.raises(NonFiniteCacheError):
            model.generate(IDS, past_key_values=cache, **GREEDY)
        with torch.no_grad():
            weight[0, 0] = 0.0
        assert cache.num_cached_tokens == 0
        cache.check_integrity()
        assert model.generate(IDS, past_key_values=cache, **GREEDY).equal(model.generate(IDS, **GREEDY))


@pytest.mark.parametrize("family", ["mamba2", "jamba", "bloom"])
def test_models_that_keep_something_else(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"recurrent|takes no"):
        PagedCache(families.build_tiny(family))


def test_models_with_an_encoder() -> None:
    config = T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(UnsupportedModelError, match="encoder"):
        PagedCache(AutoModelForSeq2SeqLM.from_config(config))


def test_rotations_that_depend_on_the_length() -> None:
    config = llama().config
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(UnsupportedModelError, match="dynamic"):
        PagedCache(AutoModelForCausalLM.from_config(config))


def test_what_is_no_model_of_transformers() -> None:
    with pytest.raises(ConfigError, match="Linear"):
        PagedCache(torch.nn.Linear(2, 2))


def test_a_length_to_crop_to(network: Any) -> None:
    with PagedCache(network, kv_cache_memory_bytes=1 << 20) as cache, pytest.raises(UnsupportedCallError, match="crop"):
        cache.crop(3)
