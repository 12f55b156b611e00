"""Decode steps of whole models on a card, against the memory rate and `generate()`. See gpu_check.py."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pagoda import LLM, SamplingParams
from pagoda.commands.shapes import shape_config
from pagoda.models.loader import model_from_config

PROMPT, NEW = 128, 128
ROUNDS = 3
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {},
    "llama-3.1-8b": {  # what differs
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
BATCHES = (1, 64)
TIMED = ("engine", "generate", "profile")


def parts(part: str) -> list[str]:
    """Each shape in a process of its own."""
    return [f"{part}/{shape}" for shape in SHAPES]


def timed(name: str) -> Iterator[dict[str, Any]]:
    part, _, shape = name.partition("/")
    return {"engine": time_engine, "generate": time_generate, "profile": profile_engine}[part](shape)


def config_of(shape: str) -> Any:
    config = shape_config("llama-3.2-1b")
    for name, value in SHAPES[shape].items():
        setattr(config, name, value)
    return config


def prompts(count: int, seed: int) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(1000, 100000) for _ in range(PROMPT)] for _ in range(count)]


def time_engine(shape: str) -> Iterator[dict[str, Any]]:
    """Steps of decoding through the engine: its own clock, and what the card does meanwhile."""
    began = perf_counter()
    model = model_from_config(config_of(shape), dtype="bfloat16", device=torch.device("cuda"))
    params = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
    with LLM(model, skip_tokenizer_init=True, max_num_batched_tokens=8192, max_model_len=1024) as llm:
        yield {"shape": shape, "pages_gib": round(llm.engine.memory.nbytes / 2**30, 1), "load": perf_counter() - began}
        for batch in BATCHES:
            found, ahead = [], llm.engine.ahead
            before = ahead.num_steps, ahead.num_rows, ahead.num_taken
            for turn in range(ROUNDS + 1):
                asked = [{"prompt_token_ids": each} for each in prompts(batch, 100 * batch + turn)]
                outputs = llm.generate(asked, params, use_tqdm=False)
                times = outputs[0].metrics.token_times
                found.append(median(later - before for before, later in pairwise(times[8:])))
            seconds = median(found[1:])
            nbytes = model.weight_nbytes + batch * (PROMPT + NEW / 2) * llm.engine.memory.nbytes_per_token
            counts = zip((ahead.num_steps, ahead.num_rows, ahead.num_taken), before, strict=True)
            yield {
                "batch": batch,
                "step_ms": seconds * 1e3,
                "spread_ms": [round(each * 1e3, 3) for each in sorted(found[1:])],
                "tokens_per_second": batch / seconds,
                "gb_per_second": nbytes / seconds / 1e9,
                "graphs": recorded(llm),
                "ahead": dict(zip(("steps", "rows", "taken"), (now - then for now, then in counts), strict=True)),
                "device_ms": device_ms(llm),
                "at": perf_counter() - began,
            }
    del llm, model
    gc.collect()
    torch.cuda.empty_cache()


def recorded(llm: LLM) -> str:
    """What there is of recorded steps."""
    steps = llm.engine._forward._decode_steps
    return "given up" if steps._recorder is None else f"{len(steps._recordings)} recorded, {num_proved(llm)} proved"


def num_proved(llm: LLM) -> int:
    return sum(each.is_proved for each in llm.engine._forward._decode_steps._recordings.values())


def device_ms(llm: LLM) -> float:
    """How long the card takes for the last step that was recorded, alone."""
    recording = next(reversed(llm.engine._forward._decode_steps._recordings.values()), None)
    if recording is None:
        return math.nan
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(20):
        recording.step._graph.replay()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended) / 20


def profile_engine(shape: str) -> Iterator[dict[str, Any]]:
    """What the card does in a step: kernels by name, with microseconds and calls of each step."""
    model = model_from_config(config_of(shape), dtype="bfloat16", device=torch.device("cuda"))
    with LLM(model, skip_tokenizer_init=True, max_model_len=1024, kv_cache_memory_bytes=4 << 30) as llm:
        for batch in BATCHES:
            asked = [{"prompt_token_ids": each} for each in prompts(batch, 7)]
            params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
            llm.generate(asked, params, use_tqdm=False)
            recording = next(reversed(llm.engine._forward._decode_steps._recordings.values()))
            activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activities) as profile:
                for _ in range(3):
                    recording.step._graph.replay()
                torch.cuda.synchronize()
            most = sorted(profile.key_averages(), key=lambda each: -each.self_device_time_total)[:24]
            yield {
                "batch": batch,
                "kernels": [(each.key[:70], round(each.self_device_time_total / 3), each.count // 3) for each in most],
            }


def time_generate(shape: str) -> Iterator[dict[str, Any]]:
    """`generate()` of transformers with a static cache, which compiles its decode steps."""
    with torch.device("cuda"):
        network = AutoModelForCausalLM.from_config(config_of(shape), dtype=torch.bfloat16).eval()
    for batch in BATCHES:
        began = perf_counter()
        seconds = []
        for turn in range(ROUNDS + 1):
            ids = torch.tensor(prompts(batch, turn), device="cuda")
            took = [generated(network, ids, count) for count in (NEW // 4, NEW)]
            seconds.append((took[1] - took[0]) / (NEW - NEW // 4))
        yield {
            "shape": shape,
            "batch": batch,
            "step_ms": median(seconds[1:]) * 1e3,
            "spread_ms": [round(each * 1e3, 3) for each in sorted(seconds[1:])],
            "took": perf_counter() - began,
        }


def generated(network: Any, ids: torch.Tensor, count: int) -> float:
    torch.cuda.synchronize()
    began = perf_counter()
    options = {"cache_implementation": "static", "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, **options)
    torch.cuda.synchronize()
    return perf_counter() - began
