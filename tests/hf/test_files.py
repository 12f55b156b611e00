"""Pages that were saved are hit by another cache of the same model, and by no other."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from hf.prompts import GREEDY, STORY_TOKENS, prompt
from hf.tiny_models import llama, qwen2
from pagoda.errors import PagodaError, SessionError
from pagoda.hf import PagedCache

NBYTES = 1 << 22


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two prompts that begin alike, of the tiny llama."""
    path = tmp_path / "story.pagoda"
    with PagedCache(llama(), kv_cache_memory_bytes=NBYTES, block_size=16) as cache:
        for ids in (prompt(5, 0), prompt(9, 1)):
            cache._subject.network.generate(ids, past_key_values=cache, **GREEDY)
        cache.save(path)
    return path


@pytest.mark.parametrize("format", ["auto", "int8", "int8/int4"])
def test_what_was_saved_is_hit(model: Any, format: str, tmp_path: Path) -> None:
    path = tmp_path / "story.pagoda"
    asked = (prompt(5, 0), prompt(9, 1))
    with PagedCache(model, kv_cache_dtype=format, kv_cache_memory_bytes=NBYTES, block_size=16) as cache:
        expected = [model.generate(ids, past_key_values=cache, **GREEDY) for ids in asked]
        warm = [model.generate(ids, past_key_values=cache, **GREEDY) for ids in asked]
        cache.save(path)
        held = cache.num_cached_tokens
    with PagedCache.load(path, model, kv_cache_memory_bytes=NBYTES) as cache:
        assert cache.num_cached_tokens == held
        found = [model.generate(ids, past_key_values=cache, **GREEDY) for ids in asked]
        assert cache.stats().hit_tokens == 2 * STORY_TOKENS + 4 + 8
        cache.check_integrity()
    assert all(a.equal(b) and b.equal(c) for a, b, c in zip(expected, warm, found, strict=True))


def test_saving_again_writes_the_same_pages(saved: Path) -> None:
    before = saved.stat().st_size
    with PagedCache.load(saved, llama(), kv_cache_memory_bytes=NBYTES) as cache:
        cache.save(saved)
    assert saved.stat().st_size == before


def test_a_small_cache_takes_what_it_has_room_for(saved: Path) -> None:
    with PagedCache.load(saved, llama(), kv_cache_memory_bytes=3 * 16 * 2 * 2 * 32 * 4) as cache:
        assert 0 < cache.num_cached_tokens <= 48
        cache.check_integrity()


def test_pages_of_other_weights_models_and_formats_are_refused_by_name(saved: Path) -> None:
    other = llama()
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    for model, options, field in (
        (other, {}, "weights"),
        (qwen2(), {}, "model"),
        (llama(), {"kv_cache_dtype": "int8"}, "format"),
    ):
        with pytest.raises(SessionError, match=f"their {field} is"):
            PagedCache.load(saved, model, kv_cache_memory_bytes=NBYTES, **options)
        assert not model._forward_hooks


def test_a_file_that_names_a_mixture_of_formats_says_what_to_do(tmp_path: Path) -> None:
    from hf.tiny_models import gemma3

    path, model, formats = tmp_path / "story.pagoda", gemma3(), "full=int8,sliding=bf16"
    with PagedCache(model, kv_cache_dtype=formats, kv_cache_memory_bytes=NBYTES) as cache:
        model.generate(prompt(5, 0), past_key_values=cache, **GREEDY)
        cache.save(path)
    with pytest.raises(SessionError, match="kv_cache_dtype"):
        PagedCache.load(path, model, kv_cache_memory_bytes=NBYTES)
    with PagedCache.load(path, model, kv_cache_dtype=formats, kv_cache_memory_bytes=NBYTES) as cache:
        assert cache.num_cached_tokens > STORY_TOKENS


def test_damaged_files_are_refused(saved: Path) -> None:
    """Any byte changed, or cut off: a named error, never other pages."""
    content, model = saved.read_bytes(), llama()
    numbers = random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
        saved.write_bytes(damaged if numbers.random() < 0.8 else content[: numbers.randrange(len(content))])
        with pytest.raises(PagodaError):
            PagedCache.load(saved, model, kv_cache_memory_bytes=NBYTES)
    assert not model._forward_hooks


def test_records_that_are_whole_but_elsewhere_are_refused(saved: Path) -> None:
    """A file made by hand, whose pages continue none that came before."""
    from pagoda.cache.session_file import SessionFile, write_session

    with SessionFile.open(saved) as file:
        description, conversation = file.description, file.conversation
        entries = [(int(entry["offset"]), int(entry["nbytes"])) for entry in file._table]
    content = saved.read_bytes()
    records = [content[offset : offset + nbytes] for offset, nbytes in entries]
    for order in (records[1:], records[::-1]):
        write_session(saved, description, conversation, order)
        with pytest.raises(SessionError, match="continues no whole page"):
            PagedCache.load(saved, llama(), kv_cache_memory_bytes=NBYTES)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="cannot be read"):
        PagedCache.load(tmp_path / "none", llama())
