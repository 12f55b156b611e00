"""Greedy tokens, from the engine and from `generate()`, as lists to compare."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig

from pagoda import RequestOutput

NEW_TOKENS = 5


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [sample.token_ids for output in outputs for sample in output.outputs]


def generated(network: Any, prompts: list[list[int]]) -> list[list[int]]:
    """What `generate()` continues each prompt with."""
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    network.generation_config.eos_token_id = None
    with torch.inference_mode():
        found = {
            prompt: network.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()
            for prompt in dict.fromkeys(map(tuple, prompts))
        }
    return [found[tuple(each)] for each in prompts]
