"""What a plan counts of weights is what the engine holds of them, whatever they are stored in."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import save_file

from gguf_models import Unconfined, write_gguf
from models import test_packed_torchao as torchao
from models import test_packed_weights as packed
from models.checkpoints import edit, make_network, save
from oracle import families
from pagoda.analysis.plan import plan
from pagoda.checkpoint.gguf_header import CODED_TYPES
from pagoda.errors import CorruptCheckpointError
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.kernels.native_calls import compiled
from pagoda.models.loader import load_model
from pagoda.models.quantized_checkpoint import write_quantized
from pagoda.planning.checkpoint import facts_from_checkpoint
from pagoda.planning.facts import MachineFacts
from pagoda.planning.weights.packed import gguf_nbytes

MACHINE = MachineFacts(available_nbytes=None)


def check(path: Path, dtype: str = "auto", zeros_alike: bool = False) -> None:
    """Zeros that are packed and all alike, which is unusual, count as others do."""
    held = load_model(path, dtype=dtype).weight_nbytes
    planned = facts_from_checkpoint(path, MACHINE, dtype).weight_nbytes
    assert planned == plan(path, dtype=dtype).model.weight_nbytes
    assert planned is not None
    assert held < planned < 1.1 * held if zeros_alike else planned == held


@pytest.mark.parametrize("kind", [*packed.CODED, *packed.DECODED])
def test_packed_checkpoints(tmp_path: Path, kind: str) -> None:
    settings, pack = (packed.CODED | packed.DECODED)[kind]
    packed.write(tmp_path, settings | ({"sym": False} if settings["quant_method"] == "gptq" else {}), pack)
    check(tmp_path, zeros_alike=kind == "packed, 1 bit")


@pytest.mark.parametrize("kind", [*torchao.CODED, *torchao.DECODED])
def test_checkpoints_of_torchao(tmp_path: Path, kind: str) -> None:
    torchao.write(tmp_path, torchao.linear((torchao.CODED | torchao.DECODED)[kind]))
    check(tmp_path)


@pytest.mark.parametrize("dtype", ["auto", "float16"])
@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2", "gemma3_text"])
def test_plain_checkpoints(tmp_path: Path, family: str, dtype: str) -> None:
    save(families.build_tiny(family), tmp_path)
    check(tmp_path, dtype)


@pytest.mark.parametrize("pack", [packed.gptq(), packed.pack_quantized(4, 64, symmetric=False)])
def test_experts_and_latents_with_codes(tmp_path: Path, pack: packed.Packer) -> None:
    settings = {"quant_method": "gptq", "sym": False} if pack.__qualname__.startswith("gptq") else packed.COMPRESSED
    packed.write_mixture(tmp_path / "experts", "qwen3_moe", settings, lambda _: pack)
    check(tmp_path / "experts")
    packed.write(tmp_path / "latents", settings, pack, family="deepseek_v3", **packed.LATENTS)
    check(tmp_path / "latents")


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "mixtral", "deepseek_v3"])
def test_checkpoints_that_pagoda_writes(tmp_path: Path, family: str, quantization: str) -> None:
    network = make_network(family, **packed.SIZES | (packed.LATENTS if family == "deepseek_v3" else {}))
    write_quantized(save(network, tmp_path / "plain"), tmp_path / "made", quantization)
    check(tmp_path / "made")


WORDS, HALVES, BYTES = torch.int32, torch.float16, torch.int8


@pytest.mark.parametrize(
    ("method", "tensors"),
    [
        ("gptq", {"qweight": torch.zeros(0, 8, dtype=WORDS), "qzeros": torch.zeros(0, 1), "scales": torch.zeros(0, 8)}),
        ("gptq_v2", {"qweight": torch.zeros(8, dtype=WORDS), "qzeros": torch.zeros(1), "scales": torch.zeros(8)}),
        ("awq", {"qweight": torch.zeros(64, 8, dtype=WORDS), "qzeros": torch.zeros(0, 1), "scales": torch.zeros(0, 8)}),
        *(
            (
                "compressed-tensors",
                {
                    "weight_packed": torch.zeros(8, words, dtype=WORDS),
                    "weight_scale": torch.zeros(8, 1, dtype=HALVES),
                    "weight_shape": torch.tensor(shape),
                },
            )
            for words, shape in ((8, [8, 0]), (8, [8, -64]), (8, [8, 64, 2]), (800, [8, 64]))
        ),
        ("compressed-tensors", {"weight": torch.zeros(8, dtype=BYTES), "weight_scale": torch.tensor(1.0)}),
        ("bitsandbytes", {"weight": torch.zeros(8, dtype=BYTES), "SCB": torch.zeros(8)}),
        ("torchao", {"_weight_qdata": torch.zeros(8, 64, dtype=BYTES), "_weight_scale": torch.zeros(8, 1)}),
    ],
)
def test_tensors_that_make_no_matrix(tmp_path: Path, method: str, tensors: dict[str, torch.Tensor]) -> None:
    save(families.build_tiny("llama"), tmp_path)
    layer = "model.layers.0.self_attn.q_proj"
    said = {f"{layer}.weight": json.dumps({"_type": "Int8Tensor", "_data": {"block_size": [1, 0]}})}
    save_file({f"{layer}.{end}": each for end, each in tensors.items()}, tmp_path / "model.safetensors", said)
    edit(tmp_path / "config.json", quantization_config={"quant_method": method})
    with pytest.raises(CorruptCheckpointError, match=f"tensors of {layer} do not make a quantized matrix"):
        facts_from_checkpoint(tmp_path, MACHINE)


@pytest.mark.parametrize("name", sorted(CODED_TYPES))
def test_types_of_gguf(name: str) -> None:
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    rows, depth = 32, 512
    weight = CodedWeight.unfilled("", compiled().GgufType.__members__[name].coding(), rows, depth)
    assert gguf_nbytes(name, rows * depth // block * nbytes) == weight.nbytes


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType[name] for name in ("Q4_0", "Q8_0", "Q4_K", "F16")])
def test_files_of_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: gguf.GGMLQuantizationType) -> None:
    monkeypatch.setattr("pagoda.checkpoint.gguf_description._confined", Unconfined)
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    check(write_gguf(tmp_path / "model.gguf", kind=kind, **sizes).file)
