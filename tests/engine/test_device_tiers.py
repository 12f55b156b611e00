"""Tiers and sessions through the engine with pages behind copies that are made late, as those of a device are.

Models compute on the processor here, so what they compute is there at once; copies out are made when somebody needs
them or changes the page, and copies in when somebody waits for them.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from threading import RLock
from typing import Any

import pytest
import torch

from engine.carried import DECODERS, LENGTH, MIB, PAGE_TOKENS, PARAMS, bodies, flood, make, prompt
from engine.greedy import tokens
from fake_device import AtOnce, FakeEvent, FakePinning, FakeStream
from oracle.families import build_tiny
from oracle.generation import random_tokens
from pagoda import SamplingParams
from pagoda.cache.transfers.device import DeviceTransfers, Streams
from pagoda.cache.transfers.pinned import PinnedMemory
from pagoda.engine import pools
from pagoda.models.model import Model

# So long writers leave pages on their way out, for the engine to go on meanwhile.
LATE_SECONDS = 0.003


class LateEvent(FakeEvent):
    def wait(self) -> None:
        if threading.current_thread().name.startswith("pagoda-write"):
            time.sleep(LATE_SECONDS)
        super().wait()


class LateStream(FakeStream):
    def record(self) -> FakeEvent:
        event = LateEvent(self)
        self.give(lambda: setattr(event, "is_over", True))
        return event


class Card:
    """What the pools of an engine are made over."""

    def __init__(self) -> None:
        lock = RLock()
        self.streams: Any = Streams(AtOnce(), LateStream(lock), LateStream(lock))
        self.pinning = FakePinning()
        self.memory = PinnedMemory(self.pinning, slab_nbytes=MIB)
        self.pools: list[DeviceTransfers] = []

    def transfers_on(self, device: torch.device, host_nbytes: int) -> Any:
        assert device.type == "cpu"
        self.memory.reserve(min(host_nbytes, 2 * MIB))
        return self.transfers

    def transfers(self, pages: torch.Tensor) -> DeviceTransfers:
        self.pools.append(DeviceTransfers(pages, self.streams, self.memory))
        return self.pools[-1]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    monkeypatch.setattr(pools, "transfers_on", card.transfers_on)
    return card


@pytest.mark.parametrize("family", DECODERS)
def test_pages_come_back_from_host_memory_with_the_same_bytes(family: str, card: Card) -> None:
    with make(Model.from_transformers(build_tiny(family)), kv_host_bytes=64 * MIB) as llm:
        [cold] = llm.generate([prompt()], PARAMS)
        whole = [*prompt(), *cold.outputs[0].token_ids[:-1]]
        before = bodies(llm, whole)
        flood(llm)
        [again] = llm.generate([[*whole, 1]], SamplingParams(temperature=0, max_tokens=1))
        assert again.cache_report.read_tokens == {"device": 0, "host": len(whole)}
        assert bodies(llm, whole) == before
        llm.check_integrity()
    assert card.pools
    assert all(not each._read and not each._written for each in card.pools)


@pytest.mark.parametrize(("family", "format"), [*((each, "auto") for each in DECODERS), ("llama", "int8")])
def test_a_pool_of_a_few_pages_above_host_memory_writes_what_a_large_one_does(
    family: str, format: str, card: Card
) -> None:
    """Pages are evicted, copied into and computed into again all the time."""
    model = Model.from_transformers(build_tiny(family))
    prompts = [prompt(seed, 40 + 7 * seed) for seed in range(8)]
    with make(model, kv_cache_dtype=format) as large:
        page_nbytes = max(each.page_nbytes for each in large.engine.memory.geometries) if family != "mamba2" else 0
        states = large.engine.memory.states
        expected = tokens(large.generate(prompts, PARAMS))
    room = 24 * page_nbytes + (0 if states is None else 5 * states.geometry.page_nbytes)
    with make(
        model, kv_cache_dtype=format, kv_cache_memory_bytes=room, kv_host_bytes=64 * MIB, max_model_len=192
    ) as llm:
        assert [tokens(llm.generate(prompts, PARAMS)) for _ in range(3)] == [expected] * 3
        llm.check_integrity()
        assert llm.cache_stats().evicted_pages
        [host] = llm.engine.residency.report()
        assert host.num_loaded > 0


def test_outputs_of_encoders_come_back_from_disk(card: Card, tmp_path: Path) -> None:
    model = Model.from_transformers(build_tiny("bart"))
    texts = [{"encoder_prompt": random_tokens(40, 0), "decoder_prompt": [2, 5, 7]}]
    with make(model, kv_disk=str(tmp_path)) as first:
        expected = tokens(first.generate(texts, PARAMS))
    with make(model, kv_disk=str(tmp_path)) as second:
        assert tokens(second.generate(texts, PARAMS)) == expected
        second.check_integrity()
        assert second.engine.residency.report()[0].num_loaded


def test_a_session_goes_on_to_the_token(card: Card, tmp_path: Path) -> None:
    model = Model.from_transformers(build_tiny("jamba"))
    with make(model) as first:
        [cold] = first.generate([prompt()], PARAMS)
        whole = [*prompt(), *cold.outputs[0].token_ids]
        assert first.save_session(tmp_path / "talk", whole).num_held_tokens == len(whole)
        expected, held = tokens(first.generate([whole], PARAMS)), bodies(first, whole)
    with make(model) as second:
        assert second.load_session(tmp_path / "talk").num_held_tokens == len(whole)
        assert bodies(second, whole) == held
        assert tokens(second.generate([whole], PARAMS)) == expected
        second.check_integrity()


def test_host_memory_of_records_is_pinned_and_comes_back(card: Card) -> None:
    with make(Model.from_transformers(build_tiny("llama")), kv_host_bytes=64 * MIB) as llm:
        llm.generate([prompt()], PARAMS)
        flood(llm)
        [host] = llm.engine.residency.tiers
        records = list(host._records.values())
        assert len(records) >= LENGTH // PAGE_TOKENS
        assert all(card.memory.holds(torch.frombuffer(each, dtype=torch.uint8).numpy()) for each in records)
    del records, host, llm
    assert len(card.pinning.pinned) <= 3, "those that were reserved, and one"
