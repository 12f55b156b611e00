"""Checkpoints that are written with codes hold what `--quantization` computes with, and others can read them.

Codes are unpacked here one number at a time, after compressed-tensors.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.checkpoints import SETTINGS, edit, make_network, save
from models.test_packed_weights import CODED, MIXTURE, check_logits, nf4, write
from oracle import families
from pagoda.cli import main
from pagoda.errors import ConfigError, CorruptCheckpointError, ModelError, UnsupportedModelError
from pagoda.kernels.coded_weight import GroupedCodes
from pagoda.models import quantized_checkpoint, rounding
from pagoda.models.coded import coded_weights
from pagoda.models.loader import load_model
from pagoda.models.pack_quantized import Scheme, packed_nbytes, packed_tensors
from pagoda.models.quantized_checkpoint import write_quantized
from pagoda.models.rounding import Minima, rounded

SIZES = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}


@pytest.fixture(autouse=True)
def small_matrices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "MIN_ROWS", 1)


def bits_at(words: torch.Tensor, row: int, place: int, bits: int) -> int:
    """The code at `place` of a row of words of 32 bits."""
    word = int(words[row, place * bits // 32]) & 0xFFFFFFFF
    return word >> place * bits % 32 & (1 << bits) - 1


def numbers_of(tensors: dict[str, torch.Tensor], layer: str, bits: int) -> torch.Tensor:
    """What the tensors of a layer stand for, by the rules of compressed-tensors."""
    rows, depth = tensors[f"{layer}.weight_shape"].tolist()
    packed, scales = tensors[f"{layer}.weight_packed"], tensors[f"{layer}.weight_scale"].float()
    zeros = tensors.get(f"{layer}.weight_zero_point")
    numbers = torch.empty(rows, depth)
    for row in range(rows):
        for column in range(depth):
            group, middle = column // 32, 1 << (bits - 1)
            zero = middle if zeros is None else bits_at(zeros.T, group, row, bits)
            numbers[row, column] = (bits_at(packed, row, column, bits) - zero) * scales[row, group]
    return numbers


@pytest.mark.parametrize(("quantization", "bits"), [("int8", 8), ("int4", 4)])
def test_codes_are_those_of_rounding(tmp_path: Path, quantization: str, bits: int) -> None:
    network = make_network(**SIZES)
    source = save(network, tmp_path / "source")
    made = write_quantized(source, tmp_path / "made", quantization)
    assert made.num_coded == 14
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    for name in ("self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"):
        layer = f"model.layers.1.{name}"
        weight = network.get_submodule(layer).weight.data
        assert torch.equal(numbers_of(tensors, layer, bits), rounded(weight, bits == 8, Minima.ZEROS).numbers())
    assert torch.equal(tensors["model.embed_tokens.weight"], network.model.embed_tokens.weight)
    assert torch.equal(tensors["lm_head.weight"], network.lm_head.weight)
    assert made.written_nbytes == sum(each.nbytes for each in tensors.values())
    assert made.stored_nbytes == sum(each.nbytes for each in network.parameters())
    weights = {"num_bits": bits, "type": "int", "symmetric": bits == 8, "group_size": 32, "strategy": "group"}
    scheme = {
        "targets": ["Linear"],
        "weights": weights | {"dynamic": False},
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized",
    }
    values = json.loads((tmp_path / "made" / "config.json").read_text())
    assert values.pop("quantization_config") == {
        "config_groups": {"group_0": scheme},
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": None,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
    }
    assert values == json.loads((source / "config.json").read_text())


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral", "deepseek_v3", "bamba", "t5"])
def test_what_is_loaded_has_codes_where_the_option_gives_them(tmp_path: Path, family: str, quantization: str) -> None:
    """Of linear layers and experts; of 8 bits the same. What is left can be rounded when it is loaded."""
    network = families.build_tiny(family)
    source = save(network, tmp_path / "source")
    write_quantized(source, tmp_path / "made", quantization)
    option = coded_weights(load_model(source, quantization=quantization).network)
    loaded = load_model(tmp_path / "made").network
    found = coded_weights(loaded)
    head = loaded.get_output_embeddings()
    experts = {name for name in option if not name.endswith(".weight")}
    layers = {name: loaded.get_submodule(name.removesuffix(".weight")) for name in option if name not in experts}
    others = {name for name, layer in layers.items() if isinstance(layer, nn.Embedding) or layer is head}
    whole = {name for name in layers if name not in others and not layers[name].in_features % 32}
    assert found.keys() == whole | experts
    assert whole
    for name, coded in found.items():
        minima = Minima.MIDDLE if name in experts else Minima.ZEROS
        matrices = network.get_parameter(name).data.reshape(-1, coded.shape[-1])
        groups = rounded(matrices, quantization == "int8", minima)
        assert torch.equal(coded.decode(), groups.numbers().reshape(coded.shape))
        if quantization == "int8":
            assert coded.kind == option[name].kind
            assert torch.equal(coded.data, option[name].data)
    for name, parameter in loaded.named_parameters():
        if parameter.dtype.is_floating_point:
            assert torch.equal(parameter, network.get_parameter(name))
    both = coded_weights(load_model(tmp_path / "made", quantization=quantization).network)
    assert both.keys() == option.keys()
    assert all(both[name].kind == coded.kind for name, coded in found.items())
    assert all(torch.equal(both[name].data, option[name].data) for name in others)


@pytest.mark.parametrize(
    ("family", "ignored"),
    [
        ("gemma3_text", ["lm_head"]),
        ("mixtral", ["model.layers.0.block_sparse_moe.gate", "model.layers.0.mlp.gate"]),
        ("gpt_oss", [r"re:.*\.experts\..*"]),  # merged on disk
        ("granitemoe", [r"re:.*\.experts\..*"]),  # merged, and by other names
        ("deepseek_v3", ["model.layers.1.mlp.gate"]),
    ],
)
def test_others_are_told_what_has_no_codes(tmp_path: Path, family: str, ignored: list[str]) -> None:
    write_quantized(save(families.build_tiny(family), tmp_path / "source"), tmp_path / "made", "int8")
    told = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]["ignore"]
    assert {*ignored} <= {*told}
    assert not [name for name in told if "embed_tokens" in name or "norm" in name]
    assert [name for name in told if "experts" in name] == [name for name in ignored if "experts" in name]


def make_mixture(**settings: Any) -> Any:
    return make_network("qwen3_moe", **SIZES, **MIXTURE | settings)


@pytest.mark.parametrize(("quantization", "bits"), [("int8", 8), ("int4", 4)])
def test_experts_have_codes_one_by_one(tmp_path: Path, quantization: str, bits: int) -> None:
    """Those of 4 bits lie around the middle one, whatever other layers have: not all read zeros of experts."""
    network = make_mixture()
    source = save(network, tmp_path / "source")
    made = write_quantized(source, tmp_path / "made", quantization)
    assert made.num_coded == 2 * (4 + 3 * 4)
    stored = load_file(source / "model.safetensors")
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    assert made.written_nbytes == sum(each.nbytes for each in tensors.values())
    for name in ("experts.0.gate_proj", "experts.3.up_proj", "experts.2.down_proj"):
        layer = f"model.layers.1.mlp.{name}"
        assert f"{layer}.weight" not in tensors
        assert f"{layer}.weight_zero_point" not in tensors
        numbers = rounded(stored[f"{layer}.weight"], bits == 8, Minima.MIDDLE).numbers()
        assert torch.equal(numbers_of(tensors, layer, bits), numbers)
    assert torch.equal(tensors["model.layers.1.mlp.gate.weight"], network.model.layers[1].mlp.gate.weight)
    values = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]
    groups = [(each["targets"], each["weights"]["symmetric"]) for each in values["config_groups"].values()]
    linear = ["Linear"], bits == 8
    assert groups == ([linear] if bits == 8 else [linear, ([r"re:.*\.experts\..*"], True)])
    assert {each["weights"]["num_bits"] for each in values["config_groups"].values()} == {bits}


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_experts_give_the_logits_of_their_codes(tmp_path: Path, quantization: str) -> None:
    network = make_mixture()
    write_quantized(save(network, tmp_path / "source"), tmp_path / "made", quantization)
    for name, parameter in network.named_parameters():
        if "proj" in name:
            minima = Minima.MIDDLE if ".experts." in name else Minima.ZEROS
            groups = rounded(parameter.data.flatten(0, -2), quantization == "int8", minima)
            parameter.data = groups.numbers().reshape(parameter.shape)
    assert len([name for name in check_logits(tmp_path / "made", network) if ".experts." in name]) == 4


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_an_expert_of_zeros_has_codes_as_the_others(tmp_path: Path, quantization: str) -> None:
    network = make_mixture()
    network.model.layers[0].mlp.experts.gate_up_proj.data[1] = 0
    write_quantized(save(network, tmp_path / "source"), tmp_path / "made", quantization)
    assert len([name for name in coded_weights(load_model(tmp_path / "made").network) if ".experts." in name]) == 4


def test_mixtures_have_codes_in_all_their_matrices_or_in_none(tmp_path: Path) -> None:
    """Others read no half of one."""
    network = make_mixture(moe_intermediate_size=48)  # rows of the last matrix are no whole groups
    write_quantized(save(network, tmp_path / "source"), tmp_path / "made", "int4")
    values = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]
    assert r"re:.*\.experts\..*" in values["ignore"]
    assert len(values["config_groups"]) == 1
    assert len(coded_weights(load_model(tmp_path / "made").network)) == 8


def test_small_experts_keep_their_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "MIN_ROWS", 129)
    source = save(make_mixture(), tmp_path / "source")
    with pytest.raises(UnsupportedModelError, match="use it as it is"):
        write_quantized(source, tmp_path / "made", "int4")


def test_mixtures_of_no_layer_are_named_by_themselves(tmp_path: Path) -> None:
    """Such as those that predict further tokens."""
    source = save(make_mixture(), tmp_path / "source")
    file = source / "model.safetensors"
    tensors = load_file(file)
    further = {
        name.replace("layers.1.", "layers.2."): each.clone() for name, each in tensors.items() if "layers.1.mlp" in name
    }
    save_file(tensors | further, file, metadata={"format": "pt"})
    write_quantized(source, tmp_path / "made", "int8")
    made = load_file(tmp_path / "made" / "model.safetensors")
    assert all(torch.equal(made[name], each) for name, each in further.items())
    ignored = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]["ignore"]
    patterns = [each.removeprefix("re:") for each in ignored if each.startswith("re:")]
    assert len(patterns) == 1
    assert re.match(patterns[0], "model.layers.2.mlp.experts.3.up_proj")
    assert not re.match(patterns[0], "model.layers.1.mlp.experts.3.up_proj")


def test_names_that_transformers_changes_are_followed(tmp_path: Path) -> None:
    """A network without its head is saved under names without its prefix."""
    network = make_network(**SIZES, tie_word_embeddings=True)
    source = save(network.model, tmp_path / "source")
    edit(source / "config.json", architectures=["LlamaForCausalLM"])
    write_quantized(source, tmp_path / "made", "int8")
    assert "layers.0.mlp.up_proj.weight_packed" in load_file(tmp_path / "made" / "model.safetensors")
    assert len(coded_weights(load_model(tmp_path / "made").network)) == 14


def test_parts_that_see_keep_their_weights(tmp_path: Path) -> None:
    """Names have other prefixes on disk."""
    source = save(families.build_tiny("gemma3"), tmp_path / "source")
    write_quantized(source, tmp_path / "made", "int8")
    coded = {name for name in load_file(tmp_path / "made" / "model.safetensors") if name.endswith("weight_packed")}
    assert coded
    assert all(name.startswith("language_model.model.layers.") for name in coded)
    told = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]["ignore"]
    assert any(name.startswith("vision_tower.") for name in told)
    option = coded_weights(load_model(source, quantization="int8").network)
    found = coded_weights(load_model(tmp_path / "made").network)
    assert len(found) == len(coded)
    assert all(torch.equal(weight.data, option[name].data) for name, weight in found.items())


def test_weights_go_to_several_files_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_checkpoint, "MAX_FILE_NBYTES", 60_000)
    source = save(make_network(**SIZES), tmp_path / "source")
    told: list[tuple[int, int]] = []
    made = write_quantized(source, tmp_path / "made", "int8", lambda *each: told.append(each))
    files = sorted((tmp_path / "made").glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 70_000 for file in files)
    index = json.loads((tmp_path / "made" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == made.written_nbytes
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    assert len(coded_weights(load_model(tmp_path / "made").network)) == 14
    assert told[-1] == (made.written_nbytes, made.written_nbytes)
    assert told == sorted(told)


def test_what_belongs_to_a_model_is_copied(tmp_path: Path) -> None:
    source = save(make_network(**SIZES), tmp_path / "source")
    for name in ("tokenizer.json", "chat_template.jinja", "README.md", "pytorch_model.bin"):
        (source / name).write_text(name)
    write_quantized(source, tmp_path / "made", "int8")
    assert {file.name for file in (tmp_path / "made").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
    }


def test_weights_that_are_decoded_can_be_coded_again(tmp_path: Path) -> None:
    write(tmp_path / "source", {"quant_method": "bitsandbytes", "load_in_4bit": True}, nf4)
    write_quantized(tmp_path / "source", tmp_path / "made", "int8")
    option = coded_weights(load_model(tmp_path / "source", quantization="int8").network)
    found = coded_weights(load_model(tmp_path / "made").network)
    assert len(found) == 14
    assert all(torch.equal(coded.data, option[name].data) for name, coded in found.items())


def test_codes_are_not_coded_again(tmp_path: Path) -> None:
    write(tmp_path / "source", *CODED["gptq"])
    with pytest.raises(UnsupportedModelError, match="are codes already"):
        write_quantized(tmp_path / "source", tmp_path / "made", "int8")
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_a_gguf_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(make_network(**SIZES), tmp_path / "source")
    monkeypatch.setattr(quantized_checkpoint, "is_gguf_folder", lambda directory: True)
    with pytest.raises(UnsupportedModelError, match="GGUF model, whose weights have codes already"):
        write_quantized(source, tmp_path / "made", "int8")


def test_a_model_without_layers_for_codes_is_refused(tmp_path: Path) -> None:
    source = save(families.build_tiny("gpt2"), tmp_path / "source")
    with pytest.raises(UnsupportedModelError, match="use it as it is"):
        write_quantized(source, tmp_path / "made", "int8")


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        write_quantized(tmp_path / "source", tmp_path / "made", "int8")
    with pytest.raises(ConfigError, match="is there already"):
        write_quantized(tmp_path / "source", tmp_path / "made" / "notes.txt", "int8")
    with pytest.raises(ConfigError, match="There is no folder"):
        write_quantized(tmp_path / "source", tmp_path / "a" / "b", "int8")


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    write_quantized(save(make_network(**SIZES), tmp_path / "source"), tmp_path / "made", "int8")
    assert (tmp_path / "made" / "config.json").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    source = save(make_network(**SIZES), tmp_path / "source")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(quantized_checkpoint, "save_file", fail)
    with pytest.raises(ModelError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        write_quantized(source, tmp_path / "made", "int8")
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_a_disk_that_is_too_full_is_seen_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(make_network(**SIZES), tmp_path / "source")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="1 B are free there"):
        write_quantized(source, tmp_path / "made", "int8")


def test_weights_that_cannot_be_read_are_not_blamed_on_the_target(tmp_path: Path) -> None:
    source = save(make_network(**SIZES), tmp_path / "source")
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorruptCheckpointError):
        write_quantized(source, tmp_path / "made", "int8")


def test_what_the_format_cannot_hold_is_refused() -> None:
    codes, scales = torch.ones(3, 64, dtype=torch.uint8), torch.full((3, 2), 0.5)
    between = GroupedCodes(codes, 4, scales, 32, minima=torch.full((3, 2), 0.7))
    with pytest.raises(ModelError, match="minima that are no codes"):
        packed_tensors(between)
    with pytest.raises(ModelError, match="minima that are no codes"):
        packed_tensors(GroupedCodes(codes, 4, scales, 32, minima=-scales))
    with pytest.raises(ModelError, match="no numbers of 16 bits"):
        packed_tensors(GroupedCodes(codes, 8, scales + 1e-5, 32, 128))


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_bytes_are_known_before(rows: int) -> None:
    for is_fine in (True, False):
        codes, scales = torch.ones(rows, 96, dtype=torch.uint8), torch.ones(rows, 3)
        groups = GroupedCodes(codes, 8 if is_fine else 4, scales, 32, 128 * is_fine, None if is_fine else scales)
        tensors = packed_tensors(groups)
        scheme = Scheme(groups.bits, 32, has_zeros=not is_fine)
        assert packed_nbytes((rows, 96), scheme) == sum(each.nbytes for each in tensors.values())


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(make_network(**SIZES), tmp_path / "source")
    arguments = ["quantize", str(source), str(tmp_path / "made"), "--quantization", "int8"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "14 layers have codes" in said.out
    assert not said.err
    assert main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert SETTINGS["vocab_size"] == load_model(tmp_path / "made").vocab_size
