"""A digest of all that decides what a model computes: its configuration, and every byte of its weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import torch
from transformers import PretrainedConfig

from pagoda.coded.layers import coded_weights

# Of a configuration, what says where it came from.
ORIGIN = ("transformers_version", "_name_or_path")
DIGEST_NBYTES = 16
# Weights are divided into pieces of so many bytes, so that all cores can take part, however unequal the weights are.
PIECE_NBYTES = 16 << 20
# Numbers of a parameter that an outline has.
SAMPLED = 256


def config_digest(config: PretrainedConfig) -> str:
    """128 bits in hexadecimal."""
    settings = {name: value for name, value in config.to_dict().items() if name not in ORIGIN}
    return blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=DIGEST_NBYTES).hexdigest()


def weights_digest(network: torch.nn.Module) -> str:
    """128 bits in hexadecimal, of names, shapes, types and bytes; each core takes about a second for a gigabyte."""
    digest = blake2b(digest_size=DIGEST_NBYTES)
    with ThreadPoolExecutor(thread_name_prefix="pagoda-digest") as executor:
        named = (*network.named_parameters(), *network.named_buffers())
        for description, numbers in (*((_described(*each), each[1]) for each in named), *_coded(network)):
            digest.update(description)
            data = _bytes(numbers)
            pieces = [data[start : start + PIECE_NBYTES] for start in range(0, len(data), PIECE_NBYTES)]
            for piece in executor.map(_digest, pieces):
                digest.update(piece)
    return digest.hexdigest()


def outline_digest(network: torch.nn.Module) -> str:
    """128 bits in hexadecimal, of what takes next to no time to read: names, shapes and types of all weights, every
    byte of buffers, which are made from a configuration, and a sample of parameters, which are read from files.
    """
    digest = blake2b(digest_size=DIGEST_NBYTES)
    for name, parameter in network.named_parameters():
        numbers = parameter.detach().flatten()
        digest.update(_described(name, parameter))
        digest.update(_bytes(numbers[:: max(1, len(numbers) // SAMPLED)]))
    for description, codes in _coded(network):
        digest.update(description)
        digest.update(_bytes(codes.flatten()[:: max(1, codes.numel() // SAMPLED)]))
    for name, buffer in network.named_buffers():
        digest.update(_described(name, buffer))
        digest.update(_bytes(buffer))
    return digest.hexdigest()


def weights_mark(weights: Iterable[torch.Tensor]) -> int:
    """Another number once weights were put in place of others or changed in place."""
    return hash(tuple((id(each), each.data_ptr(), 0 if each.is_inference() else each._version) for each in weights))


def _coded(network: torch.nn.Module) -> Iterator[tuple[bytes, torch.Tensor]]:
    """What describes the coded weights of a network, and their codes."""
    for name, weight in coded_weights(network).items():
        yield f"{name} {weight.rows} {weight.depth} {weight.type_name}".encode(), weight.stored


def _described(name: str, weight: torch.Tensor) -> bytes:
    return f"{name} {tuple(weight.shape)} {weight.dtype}".encode()


def _bytes(weight: torch.Tensor) -> memoryview:
    return weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _digest(piece: memoryview) -> bytes:
    return blake2b(piece, digest_size=DIGEST_NBYTES).digest()
