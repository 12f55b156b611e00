"""A digest of all that decides what a model computes: its configuration, and every byte of its weights."""

from __future__ import annotations

import json
from hashlib import blake2b

import torch
from transformers import PretrainedConfig

# Of a configuration, what says where it came from.
ORIGIN = ("transformers_version", "_name_or_path")


def config_digest(config: PretrainedConfig) -> str:
    """128 bits in hexadecimal."""
    settings = {name: value for name, value in config.to_dict().items() if name not in ORIGIN}
    return blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def weights_digest(network: torch.nn.Module) -> str:
    """128 bits in hexadecimal, of names, shapes, types and bytes; about a second for each gigabyte."""
    digest = blake2b(digest_size=16)
    for name, weight in (*network.named_parameters(), *network.named_buffers()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
