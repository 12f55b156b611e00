"""The bytes that the weights of a quantized checkpoint take once they are loaded, by what its headers say.

Knows the tensors of one layer by the ends of their names; `models/packed_layers.py` and `packed_torchao.py` read them,
and a test holds the two equal. Where numbers decide how codes are held, and not headers, a few of them are read, or
what is usual counts: that zeros of fewer than 8 bits are a byte each and differ, and that fp16 holds scales of bf16.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

from pagoda.checkpoint.weights import stored_nbytes
from pagoda.errors import CorruptCheckpointError
from pagoda.kernels.coded_sizes import BLOCK_ROWS, HELD_BITS, UNIT_DEPTH

WORD_BITS = 32
# Of scales and zeros that are read.
SAMPLE_ROWS = 16
READABLE = ("I8", "F16", "F32")
FP8_TYPES = ("F8_E4M3", "F8_E5M2")

# A tensor that was opened: `get_shape()`, `get_dtype()`, and `[...]` reads it.
Tensors = Mapping[str, Any]
Settings = Mapping[str, Any]


# Of some types of GGUF: bytes of a block, and how many more it has once a scale or minimum of fewer bits has a byte.
WIDENED = {"Q2_K": (84, 16), "Q3_K": (110, 4), "Q4_K": (144, 4), "Q5_K": (176, 4), "IQ4_XS": (136, 2)}


def gguf_nbytes(type_name: str, nbytes: int) -> int:
    """Of codes of a GGUF file that has them in `nbytes`, once they are laid out."""
    block_nbytes, added = WIDENED.get(type_name, (1, 0))
    return nbytes + nbytes // block_nbytes * added


class Codes(NamedTuple):
    """A matrix of codes; each `group` of a row has a scale of `scale_nbytes`, and a minimum, or a zero of a byte."""

    rows: int
    depth: int
    bits: int
    group: int
    scale_nbytes: int
    has_minimum: bool = False
    has_zeros: bool = False

    @property
    def nbytes(self) -> int:
        """As they are laid out: whole blocks of rows, whole units of depth."""
        rows, units = -(-self.rows // BLOCK_ROWS) * BLOCK_ROWS, -(-self.depth // UNIT_DEPTH)
        groups = -(-units // -(-self.group // UNIT_DEPTH))
        held_bits = next(each for each in HELD_BITS if each >= self.bits)
        scales = groups * self.scale_nbytes * (1 + self.has_minimum)
        return rows * (scales + units * (UNIT_DEPTH * held_bits // 8 + self.has_zeros))


class Numbers(NamedTuple):
    """So many that are decoded."""

    total: int


class Held(NamedTuple):
    """Bytes of codes, and how many numbers stand beside them."""

    coded_nbytes: int
    num_numbers: int


Layer = Codes | Numbers


def held_weights(tensors: Tensors, settings: Settings, texts: Mapping[str, str]) -> Held | None:
    """What becomes of `tensors`, opened, of which `settings`, the entry `quantization_config`, and headers say more.

    None of a method that is not known, or if none of them is quantized by it. Raises CorruptCheckpointError for a layer
    whose tensors do not fit each other.
    """
    method = str(settings.get("quant_method"))
    if method == "torchao":
        layers, rest = _torchao_layers(tensors, texts)
    else:
        layers, rest = _layers(tensors, settings, SCHEMES.get(method, ()))
    if not layers:
        return None
    coded = sum(each.nbytes for each in layers if isinstance(each, Codes))
    decoded = sum(each.total for each in layers if isinstance(each, Numbers))
    return Held(coded, decoded + sum(prod(map(int, tensor.get_shape())) for tensor in rest))


def _layers(tensors: Tensors, settings: Settings, schemes: tuple[Scheme, ...]) -> tuple[list[Layer], list[Any]]:
    """Those that are quantized, and the tensors of none."""
    by_layer: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        layer, end = _split(name)
        by_layer.setdefault(layer, {})[end] = tensor
    layers, rest = list[Layer](), list[Any]()
    for name, own in by_layer.items():
        scheme = next((each for each in schemes if each.needed <= own.keys()), None)
        found = None
        if scheme is not None:
            with _naming(name):
                found = _plausible(scheme.read(own, settings))
        if found is None:
            rest += own.values()
        else:
            layers.append(found)
            rest += [own[end] for end in own.keys() & {"bias"}]
    return layers, rest


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """Say of which layer the tensors are that have no such shapes."""
    try:
        yield
    except (ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(
            f"The tensors of {layer or 'the model'} do not make a quantized matrix; convert the model again."
        ) from error


def _plausible(layer: Layer | None) -> Layer | None:
    """Raises ValueError for a matrix that there cannot be."""
    if isinstance(layer, Codes) and (min(layer.rows, layer.depth, layer.group) < 1 or layer.bits > HELD_BITS[-1]):
        raise ValueError(layer)
    return layer


def _split(name: str) -> tuple[str, str]:
    """The name of a layer, and that of one of its tensors, which of bitsandbytes has dots."""
    layer, dot, end = name.rpartition(".weight.")
    return (layer, f"weight.{end}") if dot else (name.rpartition(".")[0], name.rpartition(".")[2])


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(map(int, tensor.get_shape()))


def _scale_nbytes(scale: Any) -> int:
    """Of one in fp16, if that holds them."""
    if scale.get_dtype() != "F32":
        return 2
    sample = _sample(scale)
    return 2 if (sample.astype("float16") == sample).all() else 4


def _are_alike(numbers: Any) -> bool:
    """Whether a zero is that of all codes."""
    if numbers.get_dtype() not in READABLE:
        return True
    sample = _sample(numbers)
    return bool((sample == sample.flat[0]).all()) if sample.size else True


def _sample(tensor: Any) -> Any:
    shape = _shape(tensor)
    return tensor[: min(SAMPLE_ROWS, shape[0])] if shape else tensor[...]


def _coded(rows: int, depth: int, bits: int, group: int, scale_nbytes: int, *, has_zeros: bool) -> Layer:
    """Groups that are no whole units have no layout. Not all zeros of 8 bits are a signed byte: fp32 holds minima."""
    if group < depth and group % UNIT_DEPTH:
        return Numbers(rows * depth)
    if has_zeros and bits == HELD_BITS[-1]:
        return Codes(rows, depth, bits, group, 4, has_minimum=True)
    return Codes(rows, depth, bits, group, scale_nbytes, has_zeros=has_zeros)


def _gptq(own: Tensors, settings: Settings) -> Layer:
    words, rows = _shape(own["qweight"])
    bits = max(1, _shape(own["qzeros"])[-1] * WORD_BITS // max(1, rows))
    depth, groups = words * WORD_BITS // bits, _shape(own["scales"])[0]
    if settings.get("desc_act"):
        return Numbers(rows * depth)
    group, scale_nbytes = -(-depth // groups), _scale_nbytes(own["scales"])
    return _coded(rows, depth, bits, group, scale_nbytes, has_zeros=not settings.get("sym", True))


def _awq(own: Tensors, settings: Settings) -> Layer:
    depth, words = _shape(own["qweight"])
    group, scale_nbytes = -(-depth // _shape(own["scales"])[0]), _scale_nbytes(own["scales"])
    has_zeros = bool(settings.get("zero_point", True))
    return _coded(words * WORD_BITS // 4, depth, 4, group, scale_nbytes, has_zeros=has_zeros)


def _packed(own: Tensors, settings: Settings) -> Layer:  # noqa: ARG001
    rows, depth = (int(size) for size in own["weight_shape"][...])
    bits = max(1, _shape(own["weight_packed"])[-1] * WORD_BITS // depth)
    return _with_scales(own, rows, depth, bits)


def _bytes(own: Tensors, settings: Settings) -> Layer | None:  # noqa: ARG001
    if own["weight"].get_dtype() in FP8_TYPES:
        return Numbers(prod(_shape(own["weight"])))
    if own["weight"].get_dtype() != "I8":
        return None
    rows, depth = _shape(own["weight"])
    return _with_scales(own, rows, depth, 8)


def _with_scales(own: Tensors, rows: int, depth: int, bits: int) -> Layer:
    group, scale_nbytes = -(-depth // _shape(own["weight_scale"])[-1]), _scale_nbytes(own["weight_scale"])
    return _coded(rows, depth, bits, group, scale_nbytes, has_zeros="weight_zero_point" in own)


def _float8(own: Tensors, settings: Settings) -> Layer | None:  # noqa: ARG001
    return Numbers(prod(_shape(own["weight"]))) if own["weight"].get_dtype() in FP8_TYPES else None


def _bytes_of_bnb(own: Tensors, settings: Settings) -> Layer:  # noqa: ARG001
    rows, depth = _shape(own["weight"])
    return Codes(rows, depth, 8, depth, 4)


def _nibbles_of_bnb(own: Tensors, settings: Settings) -> Layer:  # noqa: ARG001
    return Numbers(2 * stored_nbytes(own["weight"]))


class Scheme(NamedTuple):
    """The ends of names that a layer of it has, and what becomes of it; None if it is none."""

    needed: frozenset[str]
    read: Callable[[Tensors, Settings], Layer | None]


PACKED_WORDS = frozenset(("qweight", "qzeros", "scales"))
FLOAT8 = (
    Scheme(frozenset(("weight", "weight_scale_inv")), _float8),
    Scheme(frozenset(("weight", "weight_scale")), _float8),
)
# By the method that a configuration names.
SCHEMES: dict[str, tuple[Scheme, ...]] = {
    "gptq": (Scheme(PACKED_WORDS, _gptq),),
    "gptq_v2": (Scheme(PACKED_WORDS, _gptq),),
    "awq": (Scheme(PACKED_WORDS, _awq),),
    "compressed-tensors": (
        Scheme(frozenset(("weight_packed", "weight_scale", "weight_shape")), _packed),
        Scheme(frozenset(("weight", "weight_scale")), _bytes),
    ),
    "bitsandbytes": (
        Scheme(frozenset(("weight", "SCB")), _bytes_of_bnb),
        Scheme(frozenset(("weight", "weight.absmax", "weight.quant_map")), _nibbles_of_bnb),
    ),
    "fp8": FLOAT8,
}

# torchao: how the name of a part goes on behind that of its layer.
PART = "_weight_"
# Beside which its codes of 4 bits have no zeros.
FP8_ACTIVATIONS = "float8"


def _torchao_layers(tensors: Tensors, texts: Mapping[str, str]) -> tuple[list[Layer], list[Any]]:
    parts: dict[str, dict[str, Any]] = {}
    rest = list[Any]()
    for name, tensor in tensors.items():
        layer, _, end = name.rpartition(".")
        if end.startswith(PART):
            parts.setdefault(layer, {})[end.removeprefix(PART)] = tensor
        else:
            rest.append(tensor)
    return list(_of_torchao(parts, texts)), rest


def _of_torchao(parts: Mapping[str, Tensors], texts: Mapping[str, str]) -> Iterator[Layer]:
    for name, own in parts.items():
        with _naming(name):
            entry = json.loads(texts[f"{name}.weight"])
            layer = _plausible(_torchao(str(entry["_type"]), own, entry["_data"]))
        if layer is not None:
            yield layer


def _torchao(kind: str, own: Tensors, data: Settings) -> Layer:
    rows, depth = data["shape"] if kind == "Int4Tensor" else _shape(own["qdata"])
    if kind == "Float8Tensor" or "act_pre_scale" in own:
        return Numbers(rows * depth)
    group, scale_nbytes = min(data["block_size"][1], depth), _scale_nbytes(own["scale"])
    if kind == "Int4Tensor":
        codes = _coded(rows, depth, 4, group, scale_nbytes, has_zeros=False)
        is_symmetric = FP8_ACTIVATIONS in str(data["activation_dtype"]["_data"])
        # What is added else is no code, and then all is in fp32.
        return codes if is_symmetric or isinstance(codes, Numbers) else Codes(*codes[:4], 4, has_minimum=True)
    has_zeros = "zero_point" in own and not _are_alike(own["zero_point"])
    if has_zeros and own["scale"].get_dtype() == "F32":  # products of which with zeros are rounded
        return Numbers(rows * depth)
    said = (
        re.fullmatch("int([1-8])", str(data["target_dtype"]["_data"])) if kind == "IntxUnpackedToInt8Tensor" else None
    )
    return _coded(rows, depth, int(said[1]) if said else 8, group, scale_nbytes, has_zeros=has_zeros)
