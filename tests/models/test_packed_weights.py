"""Checkpoints that were quantized before give the logits of transformers over the numbers that they stand for.

The packers here are written after AutoGPTQ, AutoAWQ, compressed-tensors and bitsandbytes, one number at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoints import edit, make_network, save
from pagoda.errors import CorruptCheckpointError, UnsupportedModelError
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.models.coded import coded_weights, decode
from pagoda.models.configuration import PACKING_METHODS
from pagoda.models.loader import load_model
from pagoda.models.packed_layers import unpacked
from pagoda.models.packed_torchao import TORCHAO
from pagoda.models.packed_weights import METHODS
from pagoda.models.selftest import SEQUENCE_TOKENS, PagedRun
from pagoda.models.weights import fill

SIZES = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}
# Of latent attention, in dense layers.
LATENTS = {
    "head_dim": 64,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim"), 64),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim"), 32),
    "first_k_dense_replace": 2,
    "num_key_value_heads": 4,
}
TOLERANCE = 1e-4

Tensors = dict[str, torch.Tensor]
# What stands in the place of a weight, and the numbers it stands for.
Packer = Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]


def words_of(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [rows, count] one after the other in words [rows, ...], the first in the lowest bits."""
    rows = []
    for row in codes.tolist():
        number = sum(code << (place * bits) for place, code in enumerate(row))
        rows.append([(number >> (32 * word)) & 0xFFFFFFFF for word in range(-(-len(row) * bits // 32))])
    return torch.tensor(rows, dtype=torch.int64).to(torch.uint32).view(torch.int32)


def rounded(weight: torch.Tensor, bits: int, group: int, symmetric: bool = False) -> tuple[torch.Tensor, ...]:
    """Codes [outputs, inputs], scales and zeros [outputs, groups], and the numbers."""
    parts = weight.unflatten(1, (-1, group))
    most = (1 << bits) - 1
    if symmetric:
        scales = (parts.abs().amax(-1) / (most // 2)).half().float()
        zeros = torch.full_like(scales, (most + 1) // 2)
    else:
        low, high = parts.aminmax(dim=-1)
        scales = ((high - low) / most).half().float()
        zeros = (-low / scales).round().clamp(1, most)
    codes = (parts / scales[..., None] + zeros[..., None]).round().clamp(0, most)
    numbers = ((codes - zeros[..., None]) * scales[..., None]).flatten(1)
    return codes.flatten(1).to(torch.int32), scales, zeros.to(torch.int32), numbers


def gptq(bits: int = 4, group: int = 32, offset: int = 1, shuffled: bool = False) -> Packer:
    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        codes, scales, zeros, numbers = rounded(weight, bits, group)
        places = torch.arange(weight.shape[1]) // group
        if shuffled:
            order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0))
            places, codes, numbers = places[order], codes[:, order], numbers[:, order]
        return {
            "qweight": words_of(codes, bits).T,
            "qzeros": words_of(zeros.T - offset, bits),
            "scales": scales.T.half(),
            "g_idx": places.to(torch.int32),
        }, numbers

    return pack


def awq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    codes, scales, zeros, numbers = rounded(weight, 4, 64)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def words(columns: torch.Tensor) -> torch.Tensor:
        return words_of(columns.unflatten(1, (-1, 8))[..., order].flatten(1), 4)

    return {"qweight": words(codes.T), "qzeros": words(zeros.T), "scales": scales.T.half()}, numbers


def pack_quantized(bits: int, group: int, symmetric: bool) -> Packer:
    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        codes, scales, zeros, numbers = rounded(weight, bits, group or weight.shape[1], symmetric)
        tensors = {
            "weight_packed": words_of(codes, bits),
            "weight_scale": scales.bfloat16() if symmetric else scales,
            "weight_shape": torch.tensor(weight.shape),
        }
        if symmetric:
            return tensors, (codes - (1 << (bits - 1))) * tensors["weight_scale"].float().repeat_interleave(
                weight.shape[1] // scales.shape[1], dim=1
            )
        return tensors | {"weight_zero_point": words_of(zeros.T, bits).T}, numbers

    return pack


def int_quantized(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    codes, scales, _, numbers = rounded(weight, 8, weight.shape[1], symmetric=True)
    return {"weight": (codes - 128).to(torch.int8), "weight_scale": scales}, numbers


def float8_blocks(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Of 80 by 48, which do not divide the matrix."""
    shape = (-(-len(weight) // 80), -(-weight.shape[1] // 48))
    scales = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.5
    spread = scales.repeat_interleave(80, 0).repeat_interleave(48, 1)[: len(weight), : weight.shape[1]]
    codes = (weight / spread).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scales}, codes.float() * spread


def float8(count: int | None) -> Packer:
    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        scales = torch.rand(count or len(weight), 1, generator=torch.Generator().manual_seed(0)) + 0.5
        codes = (weight / scales).to(torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale": scales.flatten() if count else scales}, codes.float() * scales

    return pack


def bytes_of_bnb(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    most = weight.abs().amax(dim=1)
    codes = (weight / most[:, None] * 127).round().to(torch.int8)
    format = torch.tensor(0, dtype=torch.uint8)
    return {"weight": codes, "SCB": most, "weight_format": format}, codes * (most / 127)[:, None]


def nf4(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Scales of blocks are coded once more, as `bnb_4bit_use_double_quant` does."""
    table = torch.linspace(-1, 1, 16) ** 3
    blocks = weight.flatten().unflatten(0, (-1, 64))
    nested_table, nested = torch.linspace(0, 1, 256), blocks.abs().amax().reshape(1).repeat(-(-len(blocks) // 256))
    places = ((blocks.abs().amax(dim=1) - 0.01) / nested[0] * 255).round().to(torch.uint8)
    scales = nested_table[places.long()] * nested[0] + 0.01
    codes = (blocks / scales[:, None])[..., None].sub(table).abs().argmin(-1).flatten()
    state = {
        "quant_type": "nf4",
        "blocksize": 64,
        "dtype": "float32",
        "shape": list(weight.shape),
        "nested_blocksize": 256,
        "nested_dtype": "float32",
        "nested_offset": 0.01,
    }
    return {
        "weight": (codes[::2] << 4 | codes[1::2]).to(torch.uint8)[:, None],
        "weight.absmax": places,
        "weight.quant_map": table,
        "weight.nested_absmax": nested,
        "weight.nested_quant_map": nested_table,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }, (table[codes].unflatten(0, (-1, 64)) * scales[:, None]).reshape(weight.shape)


def write(folder: Path, quantization: dict[str, Any], pack: Packer, family: str = "llama", **sizes: Any) -> Any:
    """A quantized checkpoint of a small network, and the network with the numbers that it stands for."""
    network = make_network(family, **SIZES | sizes)
    save(network, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            packed, numbers = pack(tensors.pop(f"{name}.weight"))
            tensors |= {f"{name}.{end}": each.contiguous() for end, each in packed.items()}
            module.weight.data.copy_(numbers)
    save_file(tensors, folder / "model.safetensors")
    edit(folder / "config.json", quantization_config=quantization)
    return network


@torch.inference_mode()
def check_logits(folder: Path, network: Any) -> dict[str, CodedWeight]:
    """Those of what codes stand for; returns the codes."""
    model = load_model(folder, dtype="float32")
    coded = coded_weights(model.network)
    decode(model.network)
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(3, 64, (count,), generator=generator) for count in SEQUENCE_TOKENS]
    for ids, logits in zip(tokens, PagedRun(model, []).logits(tokens), strict=True):
        expected = network(ids[None]).logits[0]
        assert (logits - expected).norm() < TOLERANCE * expected.norm()
    return coded


COMPRESSED = {"quant_method": "compressed-tensors"}
CODED = {
    "gptq": ({"quant_method": "gptq"}, gptq()),
    "gptq in groups of 128, 8 bits": ({"quant_method": "gptq"}, gptq(bits=8, group=64)),
    "gptq, 2 bits": ({"quant_method": "gptq"}, gptq(bits=2)),
    "gptq, 3 bits": ({"quant_method": "gptq"}, gptq(bits=3)),
    "gptq_v2": ({"quant_method": "gptq", "checkpoint_format": "gptq_v2"}, gptq(offset=0)),
    "awq": ({"quant_method": "awq", "version": "GEMM"}, awq),
    "packed": (COMPRESSED, pack_quantized(4, 32, symmetric=True)),
    "packed, with zeros": (COMPRESSED, pack_quantized(4, 64, symmetric=False)),
    "packed, 1 bit": (COMPRESSED, pack_quantized(1, 32, symmetric=False)),
    "packed, 7 bits": (COMPRESSED, pack_quantized(7, 32, symmetric=False)),
    "packed, by outputs": (COMPRESSED, pack_quantized(8, 0, symmetric=True)),
    "bytes": (COMPRESSED, int_quantized),
    "bytes of bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, bytes_of_bnb),
}
DECODED = {
    "gptq by order of activations": ({"quant_method": "gptq", "desc_act": True}, gptq(shuffled=True)),
    "gptq in groups of 16": ({"quant_method": "gptq"}, gptq(group=16)),
    "fp8 in blocks": ({"quant_method": "fp8", "weight_block_size": [80, 48]}, float8_blocks),
    "fp8, one scale": (COMPRESSED, float8(1)),
    "fp8, by outputs": (COMPRESSED, float8(None)),
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, nf4),
}


@pytest.mark.parametrize("kind", CODED)
def test_codes_are_kept(tmp_path: Path, kind: str) -> None:
    assert len(check_logits(tmp_path, write(tmp_path, *CODED[kind]))) == 14


@pytest.mark.parametrize("kind", ["gptq, 3 bits", "awq", "packed, with zeros", "bytes"])
def test_what_makes_keys_and_values_of_latents_keeps_its_codes(tmp_path: Path, kind: str) -> None:
    """And a step multiplies by what they stand for, but for results, which are coded."""
    settings, pack = CODED[kind]
    network = write(tmp_path, settings, pack, family="deepseek_v3", **LATENTS)
    model = load_model(tmp_path, dtype="float32")
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    assert torch.equal(coded_weights(model.network)[name].decode(), network.get_parameter(name))
    tokens = [torch.arange(3, 3 + count) for count in SEQUENCE_TOKENS]
    with torch.inference_mode():
        for ids, logits in zip(tokens, PagedRun(model, []).logits(tokens), strict=True):
            expected = network(ids[None]).logits[0]
            assert (logits - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("kind", DECODED)
def test_what_has_no_scale_for_a_group_is_decoded(tmp_path: Path, kind: str) -> None:
    assert not check_logits(tmp_path, write(tmp_path, *DECODED[kind]))


MIXTURE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
}
MATRICES = 2 * 2  # of experts, in two layers


def write_mixture(folder: Path, family: str, quantization: dict[str, Any], pack: Callable[[str], Packer]) -> Any:
    """A checkpoint whose experts are quantized as `pack` says by name, and the network with what they stand for."""
    save(make_network(family, **SIZES, **MIXTURE), folder / "plain")
    tensors = load_file(folder / "plain" / "model.safetensors")
    numbers = dict(tensors)
    for name in [each for each in tensors if re.search(r"experts\.\d", each)]:
        packed, numbers[name] = pack(name)(tensors.pop(name))
        tensors |= {f"{name.removesuffix('.weight')}.{end}": each.contiguous() for end, each in packed.items()}
    save_file(numbers, folder / "plain" / "model.safetensors")
    network = load_model(folder / "plain", dtype="float32").network
    network.set_attn_implementation("eager")
    (folder / "plain" / "config.json").rename(folder / "config.json")
    save_file(tensors, folder / "model.safetensors")
    edit(folder / "config.json", quantization_config=quantization)
    return network


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("qwen3_moe", kind) for kind in ("gptq", "awq", "packed", "packed, by outputs")),
        ("qwen2_moe", "packed, with zeros"),
        ("mixtral", "packed"),
    ],
)
def test_codes_of_experts_are_kept(tmp_path: Path, family: str, kind: str) -> None:
    quantization, pack = CODED[kind]
    network = write_mixture(tmp_path, family, quantization, lambda _: pack)
    coded = check_logits(tmp_path, network)
    assert len(coded) == MATRICES
    for name, weight in coded.items():
        assert torch.allclose(weight.decode(), network.get_parameter(name), atol=1e-6)


@pytest.mark.parametrize(
    "other",
    [pack_quantized(8, 32, symmetric=True), pack_quantized(4, 32, symmetric=False), float8(None)],
    ids=["of other bits", "with zeros", "numbers"],
)
def test_matrices_of_experts_that_are_not_coded_alike_are_decoded(tmp_path: Path, other: Packer) -> None:
    """And those alone."""
    usual = CODED["packed"][1]

    def pack(name: str) -> Packer:
        return other if re.search(r"layers\.1\..*experts\.2\.down_proj", name) else usual

    network = write_mixture(tmp_path, "qwen3_moe", COMPRESSED, pack)
    assert len(check_logits(tmp_path, network)) == MATRICES - 1


def test_scales_of_experts_are_in_fp32_if_those_of_one_are(tmp_path: Path) -> None:
    def pack(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        tensors, numbers = pack_quantized(4, 64, symmetric=False)(weight)
        factor = 1 + 2.0**-20 if weight[0, 0] > 0 else 1
        return tensors | {"weight_scale": tensors["weight_scale"] * factor}, numbers * factor

    network = write_mixture(tmp_path, "qwen3_moe", COMPRESSED, lambda _: pack)
    coded = check_logits(tmp_path, network)
    assert len(coded) == MATRICES
    for name, weight in coded.items():
        assert torch.allclose(weight.decode(), network.get_parameter(name), rtol=1e-6, atol=1e-7)


def test_placeholders_of_codes_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantization, pack = CODED["gptq"]
    write_mixture(tmp_path, "qwen3_moe", quantization, lambda _: pack)
    nbytes: dict[str, int] = {}

    def filled(*arguments: Any) -> Any:
        network = fill(*arguments)
        nbytes.update({name: each.untyped_storage().nbytes() for name, each in network.named_parameters()})
        return network

    monkeypatch.setattr("pagoda.models.packed_weights.fill", filled)
    network = load_model(tmp_path, dtype="bfloat16").network
    assert {nbytes[name] for name in coded_weights(network)} == {2}


def test_all_methods_that_are_let_through_are_read() -> None:
    assert (*METHODS, TORCHAO) == PACKING_METHODS


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_follow_each_other_through_words(bits: int) -> None:
    codes = torch.randint(1 << bits, (3, 77), generator=torch.Generator().manual_seed(bits))
    assert torch.equal(unpacked(words_of(codes, bits), bits, 77), codes.to(torch.uint8))


def test_rows_of_one_word_may_be_columns_turned() -> None:
    """As zeros of up to eight outputs are."""
    codes = torch.arange(24).reshape(3, 8) % 16
    words = words_of(codes, 4).reshape(1, 3).T
    assert torch.equal(unpacked(words, 4, 8), codes.to(torch.uint8))


@pytest.mark.parametrize(
    "quantization",
    [{"quant_method": "hqq"}, {"quant_method": "awq", "version": "gemv"}, {"bits": 4}, {"quant_method": 7}],
)
def test_other_methods_are_refused_by_name(tmp_path: Path, quantization: dict[str, Any]) -> None:
    write(tmp_path, quantization, gptq())
    with pytest.raises(UnsupportedModelError, match=r"quantised .* GGUF"):
        load_model(tmp_path)


@pytest.mark.parametrize("end", ["scales", "qzeros", "g_idx"])
def test_tensors_that_do_not_fit_each_other_are_refused(tmp_path: Path, end: str) -> None:
    write(tmp_path, *CODED["gptq"])
    tensors = load_file(tmp_path / "model.safetensors")
    name = f"model.layers.0.mlp.up_proj.{end}"
    tensors[name] = tensors[name][:-1].contiguous() if end == "g_idx" else tensors[name][..., :-1].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptCheckpointError):
        load_model(tmp_path)


def test_codes_of_more_bits_than_a_byte_are_refused(tmp_path: Path) -> None:
    write(tmp_path, *CODED["packed"])
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight_packed"
    tensors[name] = tensors[name].repeat(1, 3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptCheckpointError, match="codes of 12 bits"):
        load_model(tmp_path)


def test_groups_that_are_not_there_are_refused(tmp_path: Path) -> None:
    write(tmp_path, *DECODED["gptq by order of activations"])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.g_idx"][5] = 99
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptCheckpointError, match="names groups that are not there"):
        load_model(tmp_path)


def test_a_checkpoint_without_the_codes_that_it_tells_of_is_refused(tmp_path: Path) -> None:
    save(make_network(), tmp_path)
    edit(tmp_path / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(CorruptCheckpointError, match="has none"):
        load_model(tmp_path)


def test_without_compiled_kernels_all_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = write(tmp_path, *CODED["gptq"])
    monkeypatch.setattr("pagoda.models.packed_weights.can_hold_codes", lambda: False)
    assert not check_logits(tmp_path, network)
