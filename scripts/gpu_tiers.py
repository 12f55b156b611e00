"""Pages that leave a card and come back: host tier, disk, sessions, and how fast. See gpu_check.py."""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from gpu_models import TEXTS

from engine.carried import flood
from page_records import label
from pagoda import LLM, SamplingParams
from pagoda.cache.cache import NoBytes
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.residency.load import Load, Part, Place
from pagoda.cache.residency.movers import NUM_READERS
from pagoda.cache.tiers.base import Put
from pagoda.cache.tiers.host import HostTier
from pagoda.cache.tiers.record import Draft
from pagoda.cache.transfers.base import Event, PageCopy, Transfers
from pagoda.engine.pools import transfers_on

MIB = 1 << 20
# Several pages each, which differ from the first word on.
PROMPTS = [f"{number}. {' '.join(TEXTS * 4)} {text}" for number, text in enumerate(TEXTS)]
GREEDY = SamplingParams(temperature=0, max_tokens=40)
PAGE_NBYTES = MIB
BATCHES = (1, 64)
REPEATS = 30


def names() -> list[str]:
    kinds = ("float32/auto", "bfloat16/auto", "bfloat16/int8")
    return [*(f"tier:host/{kind}" for kind in kinds), "tier:evicted", "tier:disk", "tier:session"]


def run(name: str, device: str = "cuda") -> dict[str, Any]:
    what, *rest = name.split("/")
    parts: dict[str, Callable[..., dict[str, Any]]] = {
        "host": from_host,
        "evicted": evicted,
        "disk": from_disk,
        "session": session,
    }
    return parts[what](device, *rest)


def from_host(device: str, dtype: str, format: str) -> dict[str, Any]:
    """All pages leave for host memory and come back: with the same bytes, and in fp32 to the same texts."""
    options = {"dtype": dtype, "kv_cache_dtype": format, "kv_cache_memory_bytes": 64 * MIB, "kv_host_bytes": 128 * MIB}
    with LLM(device=device, **options) as llm:
        cold = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
        always_load(llm)
        before = [whole_pages(llm, output) for output in cold]
        flood(llm)
        warm = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
        after = [whole_pages(llm, output) for output in warm]
        llm.check_integrity()
        loaded = llm.engine.residency.report()[0].num_loaded
    wrong = sum(there[key] != body for there, was in zip(after, before, strict=True) for key, body in was.items())
    differ = sum(one.outputs[0].text != other.outputs[0].text for one, other in zip(cold, warm, strict=True))
    if wrong or not loaded or (differ and dtype == "float32"):
        raise AssertionError(f"{wrong} pages have other bytes, {differ} texts differ, {loaded} records were loaded")
    return {"pages": sum(map(len, before)), "loaded": loaded, "differ": differ}


def whole_pages(llm: LLM, output: Any) -> dict[bytes, bytes]:
    """The bytes of the whole pages of a prompt, by key."""
    tokens = list(output.prompt_token_ids)
    size = llm.engine.memory.geometries[0].page_tokens
    whole = tokens[: len(tokens) // size * size]
    drafts = llm.loop.call(lambda: llm.engine.carrier.take_out(Namespace(), whole)).result().drafts
    return {draft.label.key: draft.body.tobytes() for draft in drafts}


def always_load(llm: LLM) -> None:
    """A small model computes faster than pages come, and would not wait for them."""
    llm.engine.residency.break_even.computed = lambda *_: None


def evicted(device: str) -> dict[str, Any]:
    """Prompts that come again and again through a pool of a few pages, by way of host memory, against each alone."""
    source = random.Random(3)
    prompts = [f"{number}. {' '.join(TEXTS * 2)} {number} and then" for number in range(24)]
    order = [source.choice(prompts) for _ in range(120)]
    with LLM(device=device, dtype="float32", kv_cache_memory_bytes=64 * MIB) as llm:
        page_nbytes = llm.engine.memory.geometries[0].page_nbytes
        expected = {each: llm.generate(each, GREEDY, use_tqdm=False)[0].outputs[0].text for each in prompts}
    options = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "kv_host_bytes": 64 * MIB}
    with LLM(device=device, dtype="float32", kv_cache_memory_bytes=24 * page_nbytes, **options) as llm:
        always_load(llm)
        differ = 0
        for start in range(0, len(order), 20):  # those that wait ask tiers when they come
            some = order[start : start + 20]
            outputs = llm.generate(some, GREEDY, use_tqdm=False)
            differ += sum(out.outputs[0].text != expected[each] for out, each in zip(outputs, some, strict=True))
        llm.check_integrity()
        loaded, evictions = llm.engine.residency.report()[0].num_loaded, llm.cache_stats().evicted_pages
    if differ > len(order) // 20 or not loaded or not evictions:
        raise AssertionError(f"{differ} of {len(order)} texts differ; {evictions} evictions, {loaded} records loaded")
    return {"differ": differ, "evictions": evictions, "loaded": loaded}


def from_disk(device: str) -> dict[str, Any]:
    """A second engine finds on disk what the first has written."""
    options = {"dtype": "float32", "kv_cache_memory_bytes": 64 * MIB}
    with tempfile.TemporaryDirectory() as folder:
        with LLM(device=device, kv_disk=folder, **options) as llm:
            cold = [each.outputs[0].text for each in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]
        with LLM(device=device, kv_disk=folder, **options) as llm:
            always_load(llm)
            outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
            llm.check_integrity()
    from_disk = [each.cache_report.read_tokens.get("disk", 0) for each in outputs]
    if cold != [each.outputs[0].text for each in outputs] or not any(from_disk):
        raise AssertionError(f"tokens from disk: {from_disk}; {cold} {[each.outputs[0].text for each in outputs]}")
    return {"tokens_from_disk": from_disk}


def session(device: str) -> dict[str, Any]:
    """A conversation goes on in a second engine to the token."""
    options = {"dtype": "float32", "kv_cache_memory_bytes": 64 * MIB}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "talk"
        with LLM(device=device, **options) as llm:
            [first] = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)
            whole = [*first.prompt_token_ids, *first.outputs[0].token_ids]
            saved = llm.save_session(path, whole)
            expected = llm.generate([whole], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
        with LLM(device=device, **options) as llm:
            loaded = llm.load_session(path)
            [output] = llm.generate([whole], GREEDY, use_tqdm=False)
            llm.check_integrity()
    if output.outputs[0].token_ids != expected or loaded.num_held_tokens != len(whole):
        raise AssertionError(f"{loaded.num_held_tokens} of {len(whole)} tokens held; {output.outputs[0]} {expected}")
    return {"tokens": len(whole), "nbytes": saved.nbytes, "cached": output.num_cached_tokens}


class Pages(NoBytes):
    """Pages of a device, as loads write to them."""

    def __init__(self, transfers: Transfers) -> None:
        super().__init__(PAGE_NBYTES)
        self._transfers = transfers

    def write(self, copies: Any, after: Event) -> Event:
        return self._transfers.write(copies, after)


def timed(device: str = "cuda") -> Iterator[dict[str, Any]]:
    """Pages of 1 MiB between host tier and device, against a plain copy of as many bytes of torch's pinned memory.

    `copied`: from the records of a host tier to the device, `loaded`: found there, checked and copied, `taken`: the
    way out. Rates are GB/s by the clock of the host, from the call until all is there; shares are of the plain copy.
    """
    moves = Moves(torch.device(device))
    for count in BATCHES:
        seconds = moves.seconds(count)
        yield {
            "pages": count,
            **{f"{name}_gb_per_second": round(count * PAGE_NBYTES / each / 1e9, 2) for name, each in seconds.items()},
            "copied_share": round(seconds["plain"] / seconds["copied"], 3),
            "loaded_share": round(seconds["plain"] / seconds["loaded"], 3),
            "taken_share": round(seconds["plain_out"] / seconds["taken"], 3),
        }
    moves.close()


class Moves:
    """Pages on a device, and as many records in a host tier, whose bytes are their numbers."""

    def __init__(self, device: torch.device) -> None:
        count = max(BATCHES)
        self.device = device
        self.pages = torch.zeros(count, PAGE_NBYTES, dtype=torch.uint8, device=device)
        self.transfers = transfers_on(device, 2 * count * PAGE_NBYTES)(self.pages)
        self.store, self.tier = Pages(self.transfers), HostTier(None)
        self.drafts = [Draft(label(number), PAGE_NBYTES, self.transfers.memory) for number in range(count)]
        for number, draft in enumerate(self.drafts):
            draft.body[:] = number
            self.tier.put([Put(draft.label.key, draft.seal(0))])
        self.readers = ThreadPoolExecutor(NUM_READERS)

    def seconds(self, count: int) -> dict[str, float]:
        """By the way of moving so many pages."""
        pages, moment, device = self.pages[:count], self.transfers.moment, self.device
        plain = torch.zeros(count, PAGE_NBYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
        copies = [PageCopy(page, self.drafts[page].body) for page in range(count)]
        seconds = {
            "plain": seconds_of(lambda: pages.copy_(plain, non_blocking=True), device),
            "copied": seconds_of(lambda: self.transfers.write(copies, moment()).wait(), device),
        }
        self.check(count)
        pages.zero_()
        seconds["loaded"] = seconds_of(lambda: self.load(count), device)
        self.check(count)
        for _, body in copies:
            body[:] = 255
        seconds["taken"] = seconds_of(lambda: self.transfers.read(copies).wait(), device)
        if any((body != page).any() for page, body in copies):
            raise AssertionError("what was taken out is not what is there")
        seconds["plain_out"] = seconds_of(lambda: plain.copy_(pages, non_blocking=True), device)
        return seconds

    def check(self, count: int) -> None:
        found = self.pages[:count].cpu()
        if not (found == torch.arange(count, dtype=torch.uint8)[:, None]).all():
            raise AssertionError("pages have other bytes than were copied")

    def load(self, count: int) -> None:
        """As a sequence that waits for these records has them loaded."""
        place, ended = Place(self.store, self.transfers.moment()), threading.Event()
        parts = [Part(draft.label, self.tier, place, [[page]]) for page, draft in enumerate(self.drafts[:count])]
        load = Load(parts, None, ended.set)
        load.begin(self.readers)
        ended.wait()
        if load.failed:
            raise AssertionError(f"records could not be loaded: {load.failed}")

    def close(self) -> None:
        self.readers.shutdown()
        self.transfers.close()


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """The median, until the device has nothing left to do."""
    times = []
    for _ in range(REPEATS + 3):
        wait_for(device)
        began = perf_counter()
        work()
        wait_for(device)
        times.append(perf_counter() - began)
    return median(times[3:])


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
