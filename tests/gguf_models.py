"""Tiny GGUF files, written as llama.cpp's converter writes them, of tiny networks of transformers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import dequantize, quant_shape_to_byte_shape, quantize

from models.checkpoints import make_network
from pagoda.confined.errors import FunctionError

Q8_0 = GGMLQuantizationType.Q8_0
# Keys that every architecture has, by entries of the configuration, and those that some have.
KEYS = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}
FLOATS = {"rms_norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base"}


Numbers = np.ndarray
WIDTH = 64


class Unconfined:
    """Reads files in this process, where transformers is loaded: much sooner."""

    def call(self, function: str, argument: Any, *, seconds: float) -> Any:
        module, name = function.split(":")
        folder = tempfile.tempdir
        try:
            return json.loads(json.dumps(getattr(import_module(module), name)(argument)))
        except Exception as error:
            raise FunctionError(type(error).__name__, str(error)) from error
        finally:
            tempfile.tempdir = folder  # which a child process has to itself

    def close(self) -> None: ...


class Family(NamedTuple):
    """An architecture of GGUF: the family of transformers, its settings, and what the converter writes besides.

    `change` is what the converter does to the numbers of a tensor, `undo` the reverse.
    """

    family: str
    settings: Mapping[str, Any] = MappingProxyType({})
    keys: Mapping[str, Any] = MappingProxyType({})
    change: Callable[[str, Numbers, Any], Numbers] = lambda name, weight, config: weight
    undo: Callable[[str, Numbers, Any], Numbers] = lambda name, weight, config: weight


def permuted(name: str, weight: Numbers, config: Any) -> Numbers:
    """Rotated pairs side by side, as llama.cpp rotates."""
    heads = _num_heads(name, config)
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape) if heads else weight


def unpermuted(name: str, weight: Numbers, config: Any) -> Numbers:
    heads = _num_heads(name, config)
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape) if heads else weight


def _num_heads(name: str, config: Any) -> int:
    """Of a tensor whose rows are rotated."""
    heads = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    return next((count for part, count in heads.items() if part in name), 0)


def with_one(name: str, weight: Numbers, config: Any) -> Numbers:
    """Norms as llama.cpp multiplies by them."""
    return weight + 1 if name.endswith("norm.weight") else weight


def without_one(name: str, weight: Numbers, config: Any) -> Numbers:
    return weight - 1 if name.endswith("norm.weight") else weight


def transposed(name: str, weight: Numbers, config: Any) -> Numbers:
    is_matrix = any(each in name for each in ("attn_qkv.w", "ffn_down.w", "ffn_up.w", "attn_output.w"))
    return weight.T if is_matrix else weight


def divided(name: str, weight: Numbers, config: Any) -> Numbers:
    """All queries before all keys and values, where Bloom has those of a head side by side."""
    if "attn_qkv" not in name:
        return weight
    return weight.reshape(config.n_head, 3, -1, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape)


def undivided(name: str, weight: Numbers, config: Any) -> Numbers:
    if "attn_qkv" not in name:
        return weight
    return weight.reshape(3, config.n_head, -1, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape)


def squeezed(name: str, weight: Numbers, config: Any) -> Numbers:
    """Convolutions as matrices, gates of one row as vectors, rates as they are used."""
    if "conv" in name and weight.ndim == 3:
        return weight[:, 0]
    if "gate_inp_shexp" in name:
        return weight[0]
    return -np.exp(weight) if name.endswith("ssm_a") else weight


def unsqueezed(name: str, weight: Numbers, config: Any) -> Numbers:
    if name.endswith(("conv1d.weight", "shortconv.conv.weight")):
        return weight[:, None]
    if "gate_inp_shexp" in name:
        return weight[None]
    return np.log(-weight) if name.endswith("ssm_a") else weight


def tiled(name: str, weight: Numbers, config: Any) -> Numbers:
    """Value heads by turns of key heads, norms with one, rates as they are used, convolutions as matrices."""
    return squeezed(name, _by_heads(name, _normed(name, weight, 1), config, is_undone=False), config)


def untiled(name: str, weight: Numbers, config: Any) -> Numbers:
    return _by_heads(name, _normed(name, unsqueezed(name, weight, config), -1), config, is_undone=True)


def _normed(name: str, weight: Numbers, added: int) -> Numbers:
    return weight + added if name.endswith("norm.weight") and "ssm" not in name else weight


def _by_heads(name: str, weight: Numbers, config: Any, is_undone: bool) -> Numbers:
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    if "ssm_out" in name:
        return _turned(weight.T, keys, values, is_undone).T
    if any(each in name for each in ("attn_qkv", "ssm_conv1d")):
        first = 2 * keys * config.linear_key_head_dim
        return np.concatenate([weight[:first], _turned(weight[first:], keys, values, is_undone)])
    is_of_values = any(each in name for each in ("attn_gate", "ssm_a", "ssm_beta", "ssm_dt"))
    return _turned(weight, keys, values, is_undone) if is_of_values else weight


def _turned(rows: Numbers, keys: int, values: int, is_undone: bool) -> Numbers:
    shape = (values // keys, keys) if is_undone else (keys, values // keys)
    return rows.reshape(*shape, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


FAMILIES = {
    "llama": Family(
        "llama", {"tie_word_embeddings": False}, {"rope.dimension_count": "head_dim"}, permuted, unpermuted
    ),
    "qwen2": Family("qwen2", {"tie_word_embeddings": True}),
    "qwen3": Family("qwen3", {"head_dim": 32}, {"attention.key_length": 32}),
    "gemma2": Family(
        "gemma2",
        {"head_dim": 32, "sliding_window": 8},
        {"attention.key_length": 32, "attention.sliding_window": 8},
        with_one,
        without_one,
    ),
    "gemma3": Family(
        "gemma3_text",
        {"head_dim": 32, "sliding_window": 8, "num_hidden_layers": 6},
        {"attention.key_length": 32, "attention.sliding_window": 8},
        with_one,
        without_one,
    ),
    "phi3": Family("phi3", {"partial_rotary_factor": 0.5}, {"rope.dimension_count": 8}),
    "starcoder2": Family(
        "starcoder2", {"rope_theta": 5e5}, {"attention.layer_norm_epsilon": 1e-5, "rope.freq_base": 5e5}
    ),
    "gpt2": Family(
        "gpt2",
        {"n_embd": WIDTH, "n_head": 4, "n_layer": 2, "n_positions": 96},
        {"attention.layer_norm_epsilon": 1e-5},
        transposed,
        transposed,
    ),
    "stablelm": Family("stablelm", {}, {"attention.layer_norm_epsilon": 1e-5, "rope.dimension_count": 4}),
    "bloom": Family("bloom", {"n_head": 4, "n_layer": 2}, {"attention.layer_norm_epsilon": 1e-5}, divided, undivided),
    "falcon": Family("falcon", {"bias": False}, {"attention.layer_norm_epsilon": 1e-5}),
    "lfm2": Family(
        "lfm2",
        {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False},
        {"shortconv.l_cache": 3, "attention.layer_norm_rms_epsilon": 1e-5, "attention.head_count_kv": [0, 2]},
        squeezed,
        unsqueezed,
    ),
    "mamba": Family(
        "mamba",
        {"state_size": 8, "time_step_rank": 32, "conv_kernel": 4, "intermediate_size": 128},
        {
            "ssm.conv_kernel": 4,
            "ssm.state_size": 8,
            "ssm.time_step_rank": 32,
            "ssm.inner_size": 128,
            "attention.layer_norm_rms_epsilon": 1e-5,
        },
        squeezed,
        unsqueezed,
    ),
    "nemotron": Family(
        "nemotron",
        {"partial_rotary_factor": 0.5},
        {"attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": 8},
        with_one,
        without_one,
    ),
    "qwen2moe": Family(
        "qwen2_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
        },
        {
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 32,
            "expert_shared_feed_forward_length": 64,
        },
        squeezed,
        unsqueezed,
    ),
    "qwen35": Family(
        "qwen3_5_text",
        {
            "head_dim": 32,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_value_head_dim": 16,
            "linear_num_value_heads": 4,
            "linear_conv_kernel_dim": 4,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.25,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        },
        {
            "attention.key_length": 32,
            "full_attention_interval": 2,
            "ssm.conv_kernel": 4,
            "ssm.state_size": 16,
            "ssm.group_count": 2,
            "ssm.time_step_rank": 4,
            "ssm.inner_size": 64,
            "rope.dimension_sections": [2, 1, 1, 0],
            "rope.dimension_count": 8,
        },
        tiled,
        untiled,
    ),
    "qwen3moe": Family(
        "qwen3_moe",
        {
            "head_dim": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
        {
            "attention.key_length": 32,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 32,
        },
    ),
}


class Written(NamedTuple):
    """A file, and the network whose weights are the numbers in it."""

    file: Path
    network: Any


def write_gguf(
    file: Path,
    architecture: str = "llama",
    kind: GGMLQuantizationType | Callable[[str], GGMLQuantizationType] = Q8_0,
    more: Callable[[GGUFWriter], None] = lambda writer: None,
    without: str = "",
    split_max_tensors: int = 0,
    **settings: Any,
) -> Written:
    """A tiny network of `architecture`, matrices in the type that `kind` is or names; `more` writes more.

    `without` is a tensor that is left out. There are parts of `split_max_tensors`, if that is not 0.
    """
    family = FAMILIES[architecture]
    options = {"hidden_size": WIDTH, "intermediate_size": 96, **family.settings, **settings}
    network = make_network(family.family, **options)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 1.0)
    writer = GGUFWriter(file, architecture, split_max_tensors=split_max_tensors)
    write_keys(writer, architecture, network.config, family.keys)
    more(writer)
    kind_of = kind if callable(kind) and not isinstance(kind, GGMLQuantizationType) else lambda name: kind
    state = network.state_dict()
    names = get_tensor_name_map(_arch(architecture), network.config.num_hidden_layers)
    for name, weight in list(state.items()):
        if name == "lm_head.weight" and network.config.tie_word_embeddings:
            continue
        for told, part in _parts(name, weight, names) if name != without else ():
            numbers = np.ascontiguousarray(family.change(told, part.float().numpy(), network.config))
            decoded = write_tensor(writer, told, numbers, kind_of(told) if part.dim() > 1 else None)
            part.copy_(torch.from_numpy(family.undo(told, decoded, network.config).copy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written(file, network)


def write_keys(writer: GGUFWriter, architecture: str, config: Any, more: Mapping[str, Any]) -> None:
    told = config.to_dict() | {name: getattr(config, name, None) for name in KEYS}
    told["rope_theta"] = (told.get("rope_parameters") or {}).get("rope_theta")
    for name, key in KEYS.items():
        if told.get(name) is not None and key not in more:
            writer.add_uint32(f"{architecture}.{key}", told[name])
    for name, key in FLOATS.items():
        if told.get(name) is not None and key not in more:
            writer.add_float32(f"{architecture}.{key}", told[name])
    for key, value in more.items():
        number = getattr(config, value) if isinstance(value, str) else value
        add = {float: writer.add_float32, int: writer.add_uint32, list: writer.add_array}[type(number)]
        add(f"{architecture}.{key}", number)


def write_tensor(writer: GGUFWriter, name: str, numbers: Numbers, kind: GGMLQuantizationType | None) -> Numbers:
    """Returns what it decodes to."""
    if kind is None or numbers.shape[-1] % 32:
        writer.add_tensor(name, numbers)
        return numbers
    stored = coded(numbers, kind)
    writer.add_tensor(name, stored, raw_dtype=kind)
    return dequantize(stored, kind).reshape(numbers.shape)


def coded(numbers: Numbers, kind: GGMLQuantizationType) -> Numbers:
    """In blocks; where the package cannot code, blocks of any codes."""
    try:
        return quantize(numbers, kind)
    except NotImplementedError:
        shape = quant_shape_to_byte_shape(numbers.shape, kind)
        blocks = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        assert kind is GGMLQuantizationType.Q4_K
        scales = blocks.reshape(-1, 144)[:, :4].view(np.float16)
        scales[:] = np.array([0.002, 0.03], np.float16)
        return blocks


def _arch(architecture: str) -> Any:
    return next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)


def _parts(name: str, weight: torch.Tensor, names: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors that the converter makes of one: gates of experts come fused with what they gate."""
    if name.endswith("mlp.experts.gate_up_proj"):
        block = name.split(".")[2]
        gate, up = weight.chunk(2, dim=1)
        return [(f"blk.{block}.ffn_gate_exps.weight", gate), (f"blk.{block}.ffn_up_exps.weight", up)]
    name = name.replace("dt_bias", "dt_proj.bias")  # as the converter does
    path, _, suffix = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
    suffix = suffix or ("weight" if "experts" in name else "")
    found = names.get_name(path) or names.get_name(path.partition(".")[2])
    assert found is not None, name
    return [(f"{found}.{suffix}" if suffix else found, weight)]
