"""Checkpoints of torchao give the numbers and the logits that their parts stand for.

They are written here as torchao lays them out: parts are tensors, and the header says by the name of a weight what they
are (`flatten_tensor_state_dict` of torchao 0.18).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.checkpoints import edit, make_network, save, write_pickle
from models.test_packed_weights import MATRICES, MIXTURE, SIZES, check_logits
from pagoda.errors import CorruptCheckpointError, ModelNotFoundError, UnsupportedModelError
from pagoda.models.coded import coded_weights, decode
from pagoda.models.loader import load_model

TORCHAO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}
LAYER = "model.layers.0.mlp.up_proj"
BFLOAT16 = {"_type": "torch.dtype", "_data": "bfloat16"}


@dataclass(frozen=True)
class Packed:
    """A weight as torchao keeps it: the name of its class, attributes, parts, and the numbers it stands for."""

    kind: str
    data: dict[str, Any]
    parts: dict[str, torch.Tensor]
    numbers: torch.Tensor

    def entry(self) -> str:
        return json.dumps({"_type": self.kind, "_data": self.data, "_tensor_data_names": list(self.parts)})


Packer = Callable[[torch.Tensor], Packed]


def blocks_of(numbers: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """[blocks of rows, blocks of columns, numbers of a block]"""
    return numbers.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).transpose(1, 2).flatten(2)


def spread(each: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return each.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def in_bytes(
    weight: torch.Tensor, bits: int, block: tuple[int, int], scale_dtype: torch.dtype, has_zeros: bool
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    blocks = blocks_of(weight, *block)
    if has_zeros:
        least, most = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
        scales = ((most - least) / (high - low)).to(scale_dtype)
        zeros = (low - least / scales.float()).round().clamp(low, high)
    else:
        scales = (blocks.abs().amax(-1) / high).to(scale_dtype)
        zeros = torch.zeros_like(scales).float()
    own_scales, own_zeros = spread(scales.float(), *block), spread(zeros, *block)
    codes = (weight / own_scales + own_zeros).round().clamp(low, high)
    parts = {"qdata": codes.to(torch.int8), "scale": scales, "zero_point": zeros.to(torch.int8)}
    return parts, own_scales * (codes - own_zeros)


def int8(block: tuple[int, int] | None = None, has_zeros: bool = False) -> Packer:
    """By outputs, unless `block` has other sizes; 0 is all."""

    def pack(weight: torch.Tensor) -> Packed:
        rows, columns = (own or all for own, all in zip(block or (1, 0), weight.shape, strict=True))
        parts, numbers = in_bytes(weight, 8, (rows, columns), torch.float32, has_zeros)
        data = {"act_quant_kwargs": None, "reduce_range": False, "block_size": [rows, columns], "dtype": BFLOAT16}
        return Packed("Int8Tensor", data, {name: parts[name] for name in ("zero_point", "qdata", "scale")}, numbers)

    return pack


def intx(bits: int, group: int, has_zeros: bool = False, scale_dtype: torch.dtype = torch.bfloat16) -> Packer:
    def pack(weight: torch.Tensor) -> Packed:
        group_ = group or weight.shape[1]
        parts, numbers = in_bytes(weight, bits, (1, group_), scale_dtype, has_zeros)
        data = {
            "target_dtype": {"_type": "torch.dtype", "_data": f"int{bits}"},
            "block_size": [1, group_],
            "dtype": BFLOAT16,
            "activation_quantization": "int8_asym_per_token",
        }
        return Packed("IntxUnpackedToInt8Tensor", data, parts, numbers)

    return pack


def int4(group: int, is_symmetric: bool = False) -> Packer:
    """As `mslk` rounds for it: what stands for a code of 0 is added."""

    def pack(weight: torch.Tensor) -> Packed:
        blocks = blocks_of(weight, 1, group)
        if is_symmetric:
            scales = (blocks.abs().amax(-1) / 7).bfloat16()
            added = torch.zeros_like(scales)
        else:
            low, high = blocks.aminmax(dim=-1)
            scales = ((high - low) / 15).bfloat16()
            added = (low + scales.float() * 8).bfloat16()
        own_scales, own_added = (spread(each.float(), 1, group) for each in (scales, added))
        codes = ((weight - own_added) / own_scales).round().clamp(-8, 7)
        pairs = codes.to(torch.int8) & 15
        parts = {
            "qdata": pairs[:, ::2] | pairs[:, 1::2] << 4,
            "scale": scales.T.contiguous(),
            "zero_point": added.T.contiguous(),
        }
        data = {
            "activation_dtype": {"_type": "torch.dtype", "_data": "float8_e4m3fn" if is_symmetric else "bfloat16"},
            "block_size": [1, group],
            "shape": list(weight.shape),
        }
        return Packed("Int4Tensor", data, parts, own_scales * codes + own_added)

    return pack


def float8(block: tuple[int, int]) -> Packer:
    """0 is all."""

    def pack(weight: torch.Tensor) -> Packed:
        rows, columns = (own or all for own, all in zip(block, weight.shape, strict=True))
        scales = blocks_of(weight, rows, columns).abs().amax(-1) / 448
        codes = (weight / spread(scales, rows, columns)).to(torch.float8_e4m3fn)
        data = {
            "block_size": [rows, columns],
            "mm_config": None,
            "act_quant_kwargs": None,
            "kernel_preference": {"_type": "KernelPreference", "_data": "AUTO"},
            "dtype": BFLOAT16,
        }
        return Packed(
            "Float8Tensor", data, {"qdata": codes, "scale": scales}, codes.float() * spread(scales, rows, columns)
        )

    return pack


def with_input_scales(pack: Packer) -> Packer:
    """As AWQ and SmoothQuant: inputs are multiplied first."""

    def scaled(weight: torch.Tensor) -> Packed:
        factors = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(0)) + 0.5
        packed = pack(weight / factors)
        return replace(packed, parts=packed.parts | {"act_pre_scale": factors}, numbers=packed.numbers * factors)

    return scaled


def write_packed(folder: Path, tensors: Mapping[str, torch.Tensor], packed: Mapping[str, Packed]) -> None:
    """A file with `packed` in the place of some of `tensors`, by the names of weights."""
    flat = {name: each.contiguous() for name, each in tensors.items() if name not in packed}
    said = {name: json.dumps({"_type": "Tensor"}) for name in flat} | {"format": "pt"}
    for name, own in packed.items():
        layer, _, parameter = name.rpartition(".")
        flat |= {f"{layer}._{parameter}_{part}": each for part, each in own.parts.items()}
        said[name] = own.entry()
    save_file(flat, folder / "model.safetensors", said | {"tensor_names": json.dumps([*tensors])})
    edit(folder / "config.json", quantization_config=TORCHAO)


def write(folder: Path, pack: Callable[[str], Packer | None], **settings: Any) -> tuple[Any, dict[str, Packed]]:
    """A checkpoint whose matrices are packed as `pack` says by name, and the network with what they stand for."""
    network = make_network(**SIZES | settings)
    save(network, folder)
    packed: dict[str, Packed] = {}
    for name, module in network.named_modules():
        own = pack(name) if isinstance(module, torch.nn.Linear | torch.nn.Embedding) else None
        if own is not None:
            packed[f"{name}.weight"] = own(module.weight.data.clone())
    for name, own in packed.items():
        network.get_parameter(name).data = own.numbers
    write_packed(folder, network.state_dict(), packed)
    return network, packed


def linear(pack: Packer) -> Callable[[str], Packer | None]:
    """All layers of blocks, as torchao takes them where nothing else is said."""
    return lambda name: pack if name.endswith("proj") else None


CODED = {
    "int8": int8(),
    "int8 of a matrix": int8((0, 0)),
    "int8 in groups": int8((1, 32)),
    "int8 in blocks": int8((16, 64)),
    "8da4w": intx(4, 32),
    "intx with zeros": intx(4, 64, has_zeros=True),
    "intx of 8 bits by outputs": intx(8, 0, has_zeros=True, scale_dtype=torch.float16),
    "intx of 8 bits in fp32": intx(8, 32, scale_dtype=torch.float32),
    **{f"intx of {bits} bits": intx(bits, 32) for bits in (2, 7)},
    "int4": int4(32),
    "int4 in groups of 64": int4(64),
    "int4 for activations in fp8": int4(32, is_symmetric=True),
}
DECODED = {
    "int8 with zeros": int8(has_zeros=True),
    "intx in groups of 16": intx(4, 16),
    "int4 in groups of 16": int4(16),
    "float8": float8((1, 0)),
    "float8 of a matrix": float8((0, 0)),
    "float8 in blocks": float8((32, 64)),
    "inputs that are multiplied": with_input_scales(int8()),
    "inputs that are multiplied, int4": with_input_scales(int4(32)),
}


@pytest.mark.parametrize("kind", CODED)
def test_codes_are_kept(tmp_path: Path, kind: str) -> None:
    network, packed = write(tmp_path, linear(CODED[kind]))
    coded = check_logits(tmp_path, network)
    assert coded.keys() == packed.keys()
    for name, own in packed.items():
        assert torch.equal(coded[name].decode(), own.numbers)


@pytest.mark.parametrize("kind", DECODED)
def test_what_codes_do_not_stand_for_to_the_bit_is_decoded(tmp_path: Path, kind: str) -> None:
    network, packed = write(tmp_path, linear(DECODED[kind]))
    assert not check_logits(tmp_path, network)
    read = load_model(tmp_path, dtype="float32").network
    for name, own in packed.items():
        assert torch.equal(read.get_parameter(name), own.numbers)


def test_layers_that_are_packed_in_several_ways_or_left_alone(tmp_path: Path) -> None:
    """As `ModuleFqnToConfig` and `modules_to_not_convert` have it."""
    ways: dict[str, Packer] = {
        "q_proj": int8(),
        "up_proj": intx(4, 32),
        "down_proj": int4(64),
        "gate_proj": float8((1, 0)),
    }
    network, packed = write(tmp_path, lambda name: ways.get(name.rpartition(".")[2]))
    assert len(packed) == 8
    assert len(check_logits(tmp_path, network)) == 6


def test_tables_and_heads(tmp_path: Path) -> None:
    network, packed = write(tmp_path, lambda name: intx(4, 32) if name.endswith("proj") else intx(8, 0))
    coded = check_logits(tmp_path, network)
    assert {"model.embed_tokens.weight", "lm_head.weight"} < coded.keys() == packed.keys()


def test_a_head_that_is_its_table_is_held_once(tmp_path: Path) -> None:
    """Transformers writes both."""
    network, packed = write(
        tmp_path, lambda name: intx(4, 32) if name.endswith("proj") else intx(8, 0), tie_word_embeddings=True
    )
    assert {"model.embed_tokens.weight", "lm_head.weight"} < packed.keys()
    assert len(check_logits(tmp_path, network)) == 15


@pytest.mark.parametrize("bits", [4, 8])
def test_a_head_that_was_rounded_by_itself_stays_apart(tmp_path: Path, bits: int) -> None:
    """Whatever the configuration says, which may be of the model before."""
    network, _ = write(tmp_path, lambda name: intx(8 if name == "lm_head" else bits, 0) if "proj" not in name else None)
    edit(tmp_path / "config.json", tie_word_embeddings=True)
    assert len(check_logits(tmp_path, network)) == 2


def test_parts_of_a_weight_in_several_files(tmp_path: Path) -> None:
    """Each of which has the whole header."""
    network, _ = write(tmp_path, linear(int4(32)))
    tensors, said = read_file(tmp_path)
    file_of = {name: f"part-{int(name.endswith('scale'))}.safetensors" for name in tensors}
    for file in set(file_of.values()):
        save_file({name: tensors[name] for name in tensors if file_of[name] == file}, tmp_path / file, said)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
    assert len(check_logits(tmp_path, network)) == 14


def test_experts_by_themselves(tmp_path: Path) -> None:
    save(make_network("qwen3_moe", **SIZES, **MIXTURE), tmp_path / "plain")
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    packed = {name: intx(4, 32)(each) for name, each in tensors.items() if re.search(r"experts\.\d", name)}
    numbers = tensors | {name: own.numbers.contiguous() for name, own in packed.items()}
    save_file(numbers, tmp_path / "plain" / "model.safetensors")
    network = load_model(tmp_path / "plain", dtype="float32").network
    network.set_attn_implementation("eager")
    (tmp_path / "plain" / "config.json").rename(tmp_path / "config.json")
    write_packed(tmp_path, tensors, packed)
    assert len(check_logits(tmp_path, network)) == MATRICES


def test_numbers_of_bf16_are_those_of_torchao(tmp_path: Path) -> None:
    """Which computes them in fp32, or exactly, and rounds once."""
    _, packed = write(tmp_path, linear(intx(4, 32)))
    network = load_model(tmp_path, dtype="bfloat16").network
    assert len(coded_weights(network)) == 14
    decode(network)
    for name, own in packed.items():
        assert torch.equal(network.get_parameter(name), own.numbers.bfloat16())


def test_without_compiled_kernels_all_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = write(tmp_path, linear(intx(4, 32)))
    monkeypatch.setattr("pagoda.models.packed_weights.can_hold_codes", lambda: False)
    assert not check_logits(tmp_path, network)


def read_file(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def change(folder: Path, parts: Mapping[str, Any] | None = None, entry: Any = None, **said: Any) -> None:
    """Other parts of LAYER (None is none) in the file, or functions of these; another entry, or other attributes."""
    tensors, texts = read_file(folder)
    for part, new in (parts or {}).items():
        old = tensors.pop(f"{LAYER}._weight_{part}", None)
        if new is not None:
            tensors[f"{LAYER}._weight_{part}"] = new(old).contiguous() if callable(new) else new
    own = json.loads(texts.pop(f"{LAYER}.weight"))
    own["_data"] |= said
    if entry != "":
        texts[f"{LAYER}.weight"] = json.dumps(own) if entry is None else entry
    save_file(tensors, folder / "model.safetensors", texts)


CORRUPT: dict[str, tuple[Packer, dict[str, Any], str]] = {
    "codes that are missing": (int8(), {"parts": {"qdata": None}}, "lack .*qdata"),
    "scales that are missing": (int4(32), {"parts": {"scale": None}}, "lack .*scale"),
    "zeros that are missing": (int8(has_zeros=True), {"parts": {"zero_point": None}}, "lack .*zero_point"),
    "fewer scales": (intx(4, 32), {"parts": {"scale": lambda each: each[:-1]}}, "scale has the shape"),
    "fewer zeros": (intx(4, 32), {"parts": {"zero_point": lambda each: each[:, 1:]}}, "zero_point has the shape"),
    "scales the wrong way round": (int4(32), {"parts": {"scale": lambda each: each.T}}, "scale has the shape"),
    "fewer codes": (int4(32), {"parts": {"qdata": lambda each: each[:, :-1]}}, "qdata has the shape"),
    "codes of no matrix": (int8(), {"parts": {"qdata": lambda each: each[None]}}, "two sizes"),
    "scales that are codes": (int8(), {"parts": {"scale": lambda each: each.to(torch.int8)}}, "is in I8"),
    "codes that are numbers": (int8(), {"parts": {"qdata": lambda each: each.float()}}, "is in F32"),
    "codes that are too large": (intx(4, 32), {"parts": {"qdata": lambda each: each + 8}}, "more than 4 bits"),
    "codes that are too small": (intx(4, 32), {"parts": {"qdata": lambda each: each - 2}}, "more than 4 bits"),
    "scales of no block": (float8((1, 0)), {"parts": {"scale": lambda each: each[:-1]}}, "scale has the shape"),
    "factors of too few inputs": (
        with_input_scales(int8()),
        {"parts": {"act_pre_scale": lambda each: each[1:]}},
        "act_pre_scale has the shape",
    ),
    "blocks of other sizes": (int8(), {"block_size": [1, 64]}, "scale has the shape"),
    "blocks that do not divide": (int8(), {"block_size": [1, 50]}, "should be in blocks"),
    "blocks of nothing": (int8(), {"block_size": [1, 0]}, "block_size is .* instead of two sizes"),
    "blocks of words": (int4(32), {"block_size": "all"}, "block_size is 'all' instead of two sizes"),
    "scales of several outputs": (int4(32), {"block_size": [2, 32]}, "a scale for 2 outputs"),
    "another shape": (int4(32), {"shape": [128, 1 << 50]}, "qdata has the shape"),
    "no shape": (int4(32), {"shape": None}, "shape is None"),
    "no such bits": (intx(4, 32), {"target_dtype": {"_type": "torch.dtype", "_data": "int16"}}, "target_dtype"),
    "nothing said": (int8(), {"entry": ""}, "does not say"),
    "nonsense said": (int8(), {"entry": "{"}, "does not say"),
    "no object said": (int8(), {"entry": "[]"}, "does not say"),
    "no attributes said": (int8(), {"entry": '{"_type": "Int8Tensor"}'}, "has .* for"),
    "much said": (int8(), {"entry": "[" * 20_000}, "does not say"),
    "a plain tensor said": (int8(), {"entry": '{"_type": "Tensor", "_data": {}}'}, "is kept as 'Tensor'"),
}


@pytest.mark.parametrize("kind", CORRUPT)
def test_what_does_not_fit_is_refused(tmp_path: Path, kind: str) -> None:
    pack, changes, complaint = CORRUPT[kind]
    write(tmp_path, linear(pack))
    change(tmp_path, **changes)
    expected = UnsupportedModelError if kind == "a plain tensor said" else CorruptCheckpointError
    with pytest.raises(expected, match=complaint):
        load_model(tmp_path)


def test_a_weight_none_of_whose_parts_is_there_is_missed(tmp_path: Path) -> None:
    write(tmp_path, linear(int8()))
    change(tmp_path, dict.fromkeys(("qdata", "scale", "zero_point")))
    with pytest.raises(CorruptCheckpointError, match=f"lacks 1 weights of the model: {LAYER}.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", ["Int4TilePackedTo4dTensor", "Int4PlainInt32Tensor", "NVFP4Tensor", "Other"])
def test_other_layouts_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    write(tmp_path, linear(int8()))
    change(tmp_path, entry=json.dumps({"_type": kind, "_data": {}}))
    with pytest.raises(UnsupportedModelError, match=rf"{LAYER} is kept as '{kind}' of torchao; .*Int4Tensor.* GGUF"):
        load_model(tmp_path)


def test_parts_that_are_not_known_are_refused(tmp_path: Path) -> None:
    """They may say something of the weight."""
    write(tmp_path, linear(int8()))
    change(tmp_path, {"rotation": torch.ones(1)})
    with pytest.raises(UnsupportedModelError, match="_weight_rotation, which Pagoda does not know of Int8Tensor"):
        load_model(tmp_path)


def test_other_parameters_than_weights_are_refused(tmp_path: Path) -> None:
    """As experts in one matrix, which torchao takes where it is told so."""
    network, packed = write(tmp_path, linear(int8()))
    own = packed.pop(f"{LAYER}.weight")
    write_packed(tmp_path, network.state_dict(), packed | {"model.layers.0.mlp.experts.gate_up_proj": own})
    with pytest.raises(UnsupportedModelError, match=r"experts has gate_up_proj quantized by torchao"):
        load_model(tmp_path)


def test_pickled_checkpoints_are_refused(tmp_path: Path) -> None:
    write(tmp_path, linear(int8()))
    (tmp_path / "model.safetensors").unlink()
    mark = tmp_path / "was read"
    write_pickle(tmp_path / "pytorch_model.bin", mark)
    with pytest.raises(ModelNotFoundError, match="safetensors"):
        load_model(tmp_path)
    assert not mark.exists()
