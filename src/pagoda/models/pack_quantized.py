"""Codes as compressed-tensors keeps them (`pack-quantized`), which transformers and vLLM read: tensors and settings.

The other way round is `packed_layers.py`. Does not know files, nor which layers get codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from pagoda.errors import ModelError
from pagoda.kernels.coded_weight import GroupedCodes
from pagoda.models.packed_layers import WORD_BITS

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
SHAPE_NBYTES = 16  # two numbers of 64 bits
SCALE_NBYTES = 2


class Scheme(NamedTuple):
    """Bits of a code, columns of one scale, and whether a group has a zero, a code itself; else the middle one is 0."""

    bits: int
    group: int
    has_zeros: bool


def packed_tensors(groups: GroupedCodes) -> dict[str, torch.Tensor]:
    """A layer's tensors, by the ends of their names. Codes fill whole groups.

    Raises ModelError for what the format cannot hold: scales beyond fp16, or minima between codes.
    """
    rows, depth = groups.codes.shape
    tensors = {
        "weight_packed": _words(groups.codes, groups.bits),
        "weight_scale": groups.scales.half(),
        "weight_shape": torch.tensor((rows, depth)),
    }
    if not torch.equal(tensors["weight_scale"].float(), groups.scales):
        raise _not_held("scales that are no numbers of 16 bits")
    if groups.minima is None:
        if groups.zero != 1 << (groups.bits - 1):
            raise _not_held("a zero that is not in the middle")
        return tensors
    zeros = groups.zeros()
    if zeros is None or zeros.max() >= 1 << groups.bits:
        raise _not_held("minima that are no codes")
    return tensors | {"weight_zero_point": _words(zeros.to(torch.uint8).T, groups.bits).T.contiguous()}


def packed_nbytes(shape: tuple[int, ...], scheme: Scheme) -> int:
    """Of the tensors of a layer with codes [rows, depth]."""
    rows, depth = shape
    num_groups = depth // scheme.group
    zeros = num_groups * _num_words(rows, scheme.bits) if scheme.has_zeros else 0
    words = rows * _num_words(depth, scheme.bits) + zeros
    return words * WORD_BITS // 8 + rows * num_groups * SCALE_NBYTES + SHAPE_NBYTES


def settings(schemes: Mapping[str, Scheme], ignored: Iterable[str]) -> dict[str, Any]:
    """The entry `quantization_config` of config.json, as the package compressed-tensors writes it.

    Layers have the scheme of the target that names them, by a pattern or else by their kind (`Linear`), but those that
    are `ignored`.
    """
    return {
        "config_groups": {f"group_{place}": _group(*each) for place, each in enumerate(schemes.items())},
        "quant_method": METHOD,
        "kv_cache_scheme": None,
        "format": FORMAT,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": [*ignored],
    }


def _group(target: str, scheme: Scheme) -> dict[str, Any]:
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": not scheme.has_zeros,
        "group_size": scheme.group,
        "strategy": "group",
        "dynamic": False,
    }
    return {
        "targets": [target],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": FORMAT,
    }


def _words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [rows, words] of codes [rows, count]; of 4 or 8 bits, the first in the lowest ones."""
    per_word = WORD_BITS // bits
    missing = -codes.shape[1] % per_word
    padded = torch.nn.functional.pad(codes, (0, missing)).flatten()
    octets = padded if bits == 8 else padded[::2] | padded[1::2] << 4
    return octets.view(torch.int32).reshape(len(codes), -1)


def _num_words(count: int, bits: int) -> int:
    return -(-count * bits // WORD_BITS)


def _not_held(what: str) -> ModelError:
    return ModelError(f"{FORMAT} cannot hold {what}: Pagoda has rounded wrongly; please report it.")
