"""Networks that transformers makes from a configuration, quietly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pagoda.models.own_attention import interface_name
from pagoda.models.quiet import quiet

# Makes a network of a configuration: `build(config, attn_implementation=..., dtype=...)`.
Build = Callable[..., Any]

build_decoder: Build = AutoModelForCausalLM.from_config


def random_network(config: Any, attention_name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A network with the random weights its family starts training from, ready for inference."""
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        name = interface_name(config, attention_name)
        return build_decoder(copy.deepcopy(config), attn_implementation=name, dtype=dtype).eval()
