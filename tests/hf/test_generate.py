"""generate() with a PagedCache against generate() without: the same tokens, of which fewer are computed."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from hf.prompts import GREEDY, STORY_TOKENS, Counted, prompt
from hf.tiny_models import llama
from pagoda.hf import PagedCache
from pagoda.registry import names

NBYTES = 1 << 22
FEW = {"max_new_tokens": 8}

WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "samples": {"do_sample": True, "num_return_sequences": 2},
    "drafts": {"prompt_lookup_num_tokens": 3},
    "chunks": {"prefill_chunk_size": 32},
}


def make(model: Any, **options: Any) -> PagedCache:
    return PagedCache(model, kv_cache_memory_bytes=NBYTES, block_size=16, **options)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_tokens_are_those_of_a_dynamic_cache(model: Any, way: dict[str, Any]) -> None:
    with make(model) as cache:
        for ids in (prompt(5, 0), prompt(9, 1), prompt(5, 0)):
            torch.manual_seed(0)
            expected = model.generate(ids, **GREEDY | FEW | way)
            torch.manual_seed(0)
            found = model.generate(ids, past_key_values=cache, **GREEDY | FEW | way)
            assert found.equal(expected)
            cache.check_integrity()
        assert cache.stats().hit_tokens >= 2 * STORY_TOKENS


def test_tokens_that_hit_are_not_computed(model: Any) -> None:
    with make(model) as cache, Counted(model) as counted:
        model.generate(prompt(5, 0), past_key_values=cache, **GREEDY)
        assert counted.num_tokens == STORY_TOKENS + 5 + 19
        model.generate(prompt(9, 1), past_key_values=cache, **GREEDY)
        assert counted.num_tokens == STORY_TOKENS + 5 + 19 + 9 + 19
        model.generate(prompt(9, 1), past_key_values=cache, **GREEDY)
        assert counted.num_tokens == STORY_TOKENS + 5 + 19 + 9 + 19 + 1 + 19
        stats = cache.stats()
        assert stats.computed_tokens == counted.num_tokens
        assert (stats.hit_tokens, stats.queried_tokens) == (STORY_TOKENS + STORY_TOKENS + 8, 3 * STORY_TOKENS + 23)


@pytest.mark.parametrize("format", names("format"))
def test_cold_is_warm_in_every_format(model: Any, format: str) -> None:
    with make(model, kv_cache_dtype=format) as cache:
        cold = model.generate(prompt(5, 0), past_key_values=cache, **GREEDY | FEW)
        warm = model.generate(prompt(5, 0), past_key_values=cache, **GREEDY | FEW)
        assert warm.equal(cold)
        assert cache.stats().hit_tokens == STORY_TOKENS + 4


@pytest.mark.parametrize("format", ["int8", "int4", "k8v4"])
def test_a_call_reads_what_later_ones_will(model: Any, format: str) -> None:
    """Bit for bit: what the first call attended to is what pages give the second."""
    ids = prompt(5, 0)
    with make(model, kv_cache_dtype=format) as cache, torch.no_grad():
        model(ids, past_key_values=cache, logits_to_keep=1)
        cold = [(layer.keys[..., -7:-1, :], layer.values[..., -7:-1, :]) for layer in cache.layers]
        cache.reset()
        model(ids, past_key_values=cache, logits_to_keep=1)
        assert cache.stats().hit_tokens == ids.shape[1] - 1
        warm = [(layer.keys[..., -7:-1, :], layer.values[..., -7:-1, :]) for layer in cache.layers]
        assert all(a.equal(b) for pair in zip(cold, warm, strict=True) for a, b in zip(*pair, strict=True))


def test_rows_of_different_lengths_hit_what_all_of_them_can(model: Any) -> None:
    lengths = (60, 74, 75)
    ids, mask = torch.zeros(3, 75, dtype=torch.int64), torch.zeros(3, 75, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, 75 - length :] = prompt(5, 0)[0, :length]
        mask[row, 75 - length :] = 1
    expected = model.generate(ids, attention_mask=mask, **GREEDY)
    with make(model) as cache:
        for _ in ("cold", "warm"):
            assert model.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY).equal(expected)
            cache.check_integrity()
        assert cache.stats().hit_tokens == 59 + 73 + 74
        alone = model.generate(ids[:1, 15:], past_key_values=cache, **GREEDY)
        assert alone[0, 60:].equal(expected[0, 75:])


def test_a_loop_of_calls_goes_on_until_it_is_reset(model: Any) -> None:
    ids = prompt(5, 0)
    expected = model.generate(ids, **GREEDY)[0, ids.shape[1] :].tolist()
    with make(model) as cache, torch.no_grad():
        for _ in ("cold", "warm"):
            given, tokens = ids, []
            for _ in range(20):
                given = model(given, past_key_values=cache).logits[:, -1:].argmax(-1)
                tokens.append(given.item())
            assert tokens == expected
            cache.reset()
        assert cache.stats().hit_tokens == ids.shape[1] - 1


def test_a_conversation_goes_on_by_all_of_its_tokens(model: Any) -> None:
    with make(model) as cache, Counted(model) as counted:
        first = model.generate(prompt(5, 0), past_key_values=cache, **GREEDY)
        second = torch.cat((first, prompt(8, 3)[:, -8:]), dim=1)
        counted.num_tokens = 0
        found = model.generate(second, past_key_values=cache, **GREEDY)
        assert counted.num_tokens == 1 + 8 + 19  # the last token that was generated had not been computed
    assert found.equal(model.generate(second, **GREEDY))


def test_pages_of_few_calls_are_given_up_for_others() -> None:
    model = llama()
    with PagedCache(model, kv_cache_memory_bytes=8 * 16 * 2 * 2 * 32 * 4, block_size=16) as cache:
        for seed in range(4):
            ids = prompt(20, seed).roll(seed, dims=1)
            assert model.generate(ids, past_key_values=cache, **GREEDY).equal(model.generate(ids, **GREEDY))
            cache.check_integrity()


def test_other_weights_make_other_pages(model: Any) -> None:
    with make(model) as cache:
        model.generate(prompt(5, 0), past_key_values=cache, **GREEDY)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(1.5)
        found = model.generate(prompt(5, 0), past_key_values=cache, **GREEDY)
        assert cache.stats().hit_tokens == 0
    assert found.equal(model.generate(prompt(5, 0), **GREEDY))


def test_rows_are_picked_and_cropped(model: Any) -> None:
    """What assisted generation and contrastive search do, by hand."""
    ids = prompt(5, 0)
    with make(model) as cache, torch.no_grad():
        model(ids[:, :-3], past_key_values=cache)
        cache.batch_repeat_interleave(3)
        cache.batch_select_indices(torch.tensor([0, 2]))
        model(ids[:, -3:].repeat(2, 1), past_key_values=cache)
        cache.crop(-2)
        last = model(ids[:, -2:].repeat(2, 1), past_key_values=cache).logits[:, -1]
        expected = model(ids).logits[:, -1]
        torch.testing.assert_close(last, expected.repeat(2, 1), rtol=2e-2, atol=2e-2)
        cache.check_integrity()


def test_tokens_of_committed_pages_can_be_taken_back() -> None:
    model, ids = llama(), prompt(5, 0)
    with make(model) as cache, torch.no_grad():
        model(ids, past_key_values=cache)
        model(ids[:, :1], past_key_values=cache)
        cache.crop(-10)
        last = model(ids[:, -9:], past_key_values=cache).logits[:, -1]
        torch.testing.assert_close(last, model(ids).logits[:, -1])


def test_nothing_is_left_of_a_cache_on_its_model(model: Any) -> None:
    for end in (PagedCache.close, lambda _: None):
        cache = make(model)
        model.generate(prompt(5, 0), past_key_values=cache, **GREEDY)
        end(cache)
        del cache
        gc.collect()
        assert not model._forward_hooks
        assert not model._forward_pre_hooks
