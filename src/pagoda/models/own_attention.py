"""Families that attend in code of their own, made to call a function where they do.

Each function below is what one class of transformers does before and after attention, with its own weights and helpers;
what is between becomes one call, as those families make it that use transformers' attention interface. Which tokens
are attended to is said in the call (`own_reach`), since the masks these families build are left out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionMaskInterface

from pagoda.errors import UnsupportedModelError
from pagoda.layouts.spec import Reach

# (module, query, key, value, attention_mask, **kind of attention) -> ([1, rows, heads, width], None)
AttentionFunction = Callable[..., tuple[torch.Tensor, None]]
Forward = Callable[..., Any]

# They take any name for their attention, or fail on one they do not know, and never call it.
OWN_ATTENTION_FAMILIES = (
    "bloom",
    "codegen",
    "falcon",
    "git",
    "gpt_neo",
    "gpt_neox_japanese",
    "gptj",
    "megatron-bert",
    "mpt",
    "openai-gpt",
    "rembert",
    "xglm",
)
CAUSAL = (Reach.FULL, None)
_WITHOUT_MASKS = "pagoda-own"


def interface_name(config: Any, name: str) -> str:
    """The attention to build a network of `config` with so that it attends as `name` in the end."""
    if config.model_type not in OWN_ATTENTION_FAMILIES:
        return name
    # What a test compares with, too; the eager attention of Falcon adds the biases of ALiBi twice.
    return "sdpa" if config.model_type == "falcon" and config.alibi else "eager"


def call_function(network: Any, function: AttentionFunction) -> None:
    """Let every attention layer of `network` call `function`, and transformers build no masks for it."""
    for module in network.modules():
        adapt = _LAYERS.get(type(module).__name__)
        if adapt is not None:
            adapt(module, function)
        if getattr(module, "config", None) is not None:
            module.config._attn_implementation_internal = _WITHOUT_MASKS


def _falcon(module: Any, function: AttentionFunction) -> None:
    """Rotary or ALiBi; the queries of a KV head lie beside its key and value."""
    code = _code_of(module)

    slopes = None
    if module.config.alibi:
        biases = code.build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), module.num_heads, torch.float32)
        slopes = _floats(biases[:, 0, 1] * module.inv_norm_factor)

    def split(fused: torch.Tensor) -> list[torch.Tensor]:
        if module.new_decoder_architecture:
            grouped = fused.unflatten(-1, (module.num_kv_heads, -1, module.head_dim))
            return [grouped[..., :-2, :].flatten(2, 3), grouped[..., -2, :], grouped[..., -1, :]]
        return list(module._split_heads(fused))

    def forward(
        hidden_states: torch.Tensor, *_: Any, position_embeddings: Any = None, **__: Any
    ) -> tuple[torch.Tensor, None]:
        query, key, value = (part.transpose(1, 2) for part in split(module.query_key_value(hidden_states)))
        if slopes is None:
            query, key = code.apply_rotary_pos_emb(query, key, *position_embeddings)
        out, _nothing = function(
            module, query, key, value, scaling=module.inv_norm_factor, slopes=slopes, own_reach=CAUSAL
        )
        return module.dense(out.flatten(2)), None

    module.forward = forward


def _bloom(module: Any, function: AttentionFunction) -> None:
    slopes = _floats(_code_of(module)._get_alibi_slopes(module.num_heads, torch.device("cpu")))

    def forward(hidden_states: torch.Tensor, residual: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        query, key, value = module._reshape(module.query_key_value(hidden_states))
        out, _nothing = function(
            module, query, key, value, scaling=module.inv_norm_factor, slopes=slopes, own_reach=CAUSAL
        )
        return residual + module.dense(out.flatten(2)), None

    module.forward = forward


def _mpt(module: Any, function: AttentionFunction) -> None:
    biases = _code_of(module).build_mpt_alibi_tensor(module.n_heads, 2, device=torch.device("cpu"))
    slopes = _floats((biases[..., 1] - biases[..., 0]).flatten())

    def forward(hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        fused = module.Wqkv(hidden_states)
        if module.clip_qkv:
            fused = fused.clamp(-module.clip_qkv, module.clip_qkv)
        query, key, value = (
            part.unflatten(-1, (module.n_heads, module.head_dim)).transpose(1, 2) for part in fused.chunk(3, dim=-1)
        )
        out, _nothing = function(
            module, query, key, value, scaling=module.softmax_scale, slopes=slopes, own_reach=CAUSAL
        )
        return module.out_proj(out.flatten(2)), None

    module.forward = forward


def _gptj(module: Any, function: AttentionFunction) -> None:
    """GPT-J, CodeGen and the Japanese GPT-NeoX attend in a method that takes heads apart."""
    module._attn = _between(module, function)


def _gpt_neo(module: Any, function: AttentionFunction) -> None:
    """Scores are not scaled; every other layer has a window."""
    is_local = module.attention_type == "local"
    reach = (Reach.SLIDING, module.config.window_size) if is_local else CAUSAL
    module._attn = _between(module, function, scaling=1.0, own_reach=reach)


def _between(
    module: Any, function: AttentionFunction, scaling: float | None = None, own_reach: Any = CAUSAL
) -> Forward:
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None]:
        # Some rotate in fp32 and round to the type of the weights where the cache begins.
        query, key = query.to(value.dtype), key.to(value.dtype)
        out, _nothing = function(module, query, key, value, scaling=scaling, own_reach=own_reach)
        return out.transpose(1, 2), None

    return attend


def _openai(module: Any, function: AttentionFunction) -> None:
    """Keys come transposed; a list is expected."""
    scaling = None if module.scale else 1.0

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> list[torch.Tensor]:
        out, _nothing = function(module, query, key.transpose(2, 3), value, scaling=scaling, own_reach=CAUSAL)
        return [out.transpose(1, 2)]

    module._attn = attend


def _xglm(module: Any, function: AttentionFunction) -> None:
    def forward(hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        query, key, value = _heads(hidden_states, module.head_dim, module.q_proj, module.k_proj, module.v_proj)
        out, _nothing = function(module, query, key, value, scaling=module.scaling, own_reach=CAUSAL)
        return module.out_proj(out.flatten(2)), None

    module.forward = forward


def _bert(module: Any, function: AttentionFunction) -> None:
    """The layers of BERT, in models that were trained as decoders; what comes after attention is another module's."""
    scaling = 1 / math.sqrt(module.attention_head_size)

    def forward(hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        query, key, value = _heads(hidden_states, module.attention_head_size, module.query, module.key, module.value)
        out, _nothing = function(module, query, key, value, scaling=scaling, own_reach=CAUSAL)
        return out.flatten(2), None

    module.forward = forward


def _decoding_bert(module: Any, function: AttentionFunction) -> None:
    if not module.is_decoder:
        raise UnsupportedModelError(f"{type(module).__name__} attends to later tokens too: it is not a decoder.")
    _bert(module, function)


def _one_number(*, device: Any = "cpu", **_: Any) -> torch.Tensor:
    """In the place of a mask, since some families look into theirs."""
    return torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)


def _code_of(module: Any) -> Any:
    """The file of transformers that the class of `module` stands in."""
    return sys.modules[type(module).__module__]


def _heads(rows: torch.Tensor, width: int, *projections: Any) -> list[torch.Tensor]:
    return [projection(rows).unflatten(-1, (-1, width)).transpose(1, 2) for projection in projections]


def _floats(slopes: torch.Tensor) -> tuple[float, ...]:
    return tuple(float(slope) for slope in slopes.float())


AttentionMaskInterface.register(_WITHOUT_MASKS, _one_number)

_LAYERS: dict[str, Callable[[Any, AttentionFunction], None]] = {
    "Attention": _openai,
    "BloomAttention": _bloom,
    "CodeGenAttention": _gptj,
    "FalconAttention": _falcon,
    "GPTJAttention": _gptj,
    "GPTNeoSelfAttention": _gpt_neo,
    "GPTNeoXJapaneseAttention": _gptj,
    "GitSelfAttention": _bert,
    "MegatronBertSelfAttention": _decoding_bert,
    "MptAttention": _mpt,
    "RemBertSelfAttention": _decoding_bert,
    "XGLMAttention": _xglm,
}
