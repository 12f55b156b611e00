"""Codes as compressed-tensors keeps them (`pack-quantized`), which transformers and vLLM read: tensors and settings.

The other way round is `packed_layers.py`. Does not know files, nor which layers get codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from pagoda.errors import ModelError
from pagoda.kernels.coded_weight import GroupedCodes
from pagoda.models.packed_layers import WORD_BITS
from pagoda.models.rounding import COARSE_BITS

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
SHAPE_NBYTES = 16  # two numbers of 64 bits
SCALE_NBYTES = 2


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
    assert has_zeros(groups.bits) == (groups.minima is not None)
    if groups.minima is None:
        if groups.zero != 1 << (groups.bits - 1):
            raise _not_held("a zero that is not in the middle")
        return tensors
    zeros = groups.zeros()
    if zeros is None or zeros.max() >= 1 << groups.bits:
        raise _not_held("minima that are no codes")
    return tensors | {"weight_zero_point": _words(zeros.to(torch.uint8).T, groups.bits).T.contiguous()}


def has_zeros(bits: int) -> bool:
    """Whether codes of so many bits have minima (`rounding.py`), which the format keeps as zeros."""
    return bits == COARSE_BITS


def packed_nbytes(shape: tuple[int, ...], bits: int, group: int) -> int:
    """Of the tensors of a layer with codes [rows, depth]."""
    rows, depth = shape
    num_groups = depth // group
    zeros = num_groups * _num_words(rows, bits) if has_zeros(bits) else 0
    return (rows * _num_words(depth, bits) + zeros) * WORD_BITS // 8 + rows * num_groups * SCALE_NBYTES + SHAPE_NBYTES


def settings(bits: int, group: int, ignored: Iterable[str]) -> dict[str, Any]:
    """The entry `quantization_config` of config.json, as the package compressed-tensors writes it.

    All linear layers have codes of so many bits but those that are `ignored`.
    """
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": not has_zeros(bits),
        "group_size": group,
        "strategy": "group",
        "dynamic": False,
    }
    scheme = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": FORMAT,
    }
    return {
        "config_groups": {"group_0": scheme},
        "quant_method": METHOD,
        "kv_cache_scheme": None,
        "format": FORMAT,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": [*ignored],
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
