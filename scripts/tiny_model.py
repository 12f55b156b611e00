"""A compact Llama for training, with the parameter names of `LlamaForCausalLM`.

It computes what the transformers model computes, but fuses the projections that share an input and,
on a CPU, takes the loss without keeping all logits and has its own attention gradient, since
PyTorch's there takes about twice as long as this one once compiled. `to_transformers` loads the weights
into the transformers model strictly, so that the two cannot drift apart unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

QUERY_BLOCK = 128  # least rows of the score matrix that the attention gradient recomputes at a time
MOST_BLOCKS = 4  # more of them take long to compile
LOSS_SLICE = 2048  # rows of logits held at a time on a CPU


@dataclass(frozen=True)
class Shape:
    """The architecture's numbers; as they stand, 6,951,168 parameters."""

    vocabulary: int = 4096
    width: int = 256
    inner_width: int = 704
    layers: int = 8
    heads: int = 4
    key_value_heads: int = 2
    head_width: int = 64
    positions: int = 4096
    rotary_base: float = 50_000.0
    norm_epsilon: float = 1e-5
    initial_deviation: float = 0.02

    def config(self) -> LlamaConfig:
        """The same in the words of transformers."""
        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner_width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            head_dim=self.head_width,
            max_position_embeddings=self.positions,
            rope_parameters={"rope_type": "default", "rope_theta": self.rotary_base},
            rms_norm_eps=self.norm_epsilon,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )


def rotary_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, each repeated over both halves of a head."""
    exponents = torch.arange(0, shape.head_width, 2).float() / shape.head_width
    angles = torch.outer(torch.arange(shape.positions).float(), shape.rotary_base**-exponents).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Apply the rotary embedding in the half-split layout of transformers."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat((-second, first), dim=-1) * sines


class CausalAttention(torch.autograd.Function):
    """PyTorch's flash attention forward, and a gradient made of batched matrix products."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        group = query.size(1) // key.size(1)
        output: Tensor
        output, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key.repeat_interleave(group, 1), value.repeat_interleave(group, 1), 0.0, True
        )
        ctx.save_for_backward(query, key, value, output, log_sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, output, log_sums = ctx.saved_tensors
        batch, heads, length, width = query.shape
        pairs, group = batch * key.size(1), heads // key.size(1)
        scale = width**-0.5
        correction = (gradients[0].float() * output.float()).sum(-1).reshape(pairs, group, length, 1)
        log_sums = log_sums.reshape(pairs, group, length, 1)
        queries, upstream = (part.reshape(pairs, group, length, width) for part in (query, gradients[0]))
        keys, values = (part.reshape(pairs, length, width) for part in (key, value))
        key_gradient, value_gradient = torch.zeros_like(keys.float()), torch.zeros_like(values.float())
        query_gradients = []
        rows = max(QUERY_BLOCK, -(-length // MOST_BLOCKS))
        for start in range(0, length, rows):
            end = min(start + rows, length)
            block, incoming = (part[:, :, start:end].flatten(1, 2) for part in (queries, upstream))
            visible = torch.arange(end) <= torch.arange(start, end)[:, None]
            scores = (block @ keys[:, :end].transpose(1, 2)).unflatten(1, (group, -1)).float()
            weights = torch.where(visible, torch.exp(scores * scale - log_sums[:, :, start:end]), 0.0)
            slopes = (incoming @ values[:, :end].transpose(1, 2)).unflatten(1, (group, -1)).float()
            slopes = (weights * (slopes - correction[:, :, start:end]) * scale).to(query.dtype).flatten(1, 2)
            weights = weights.to(query.dtype).flatten(1, 2)
            value_gradient[:, :end] += weights.transpose(1, 2) @ incoming
            key_gradient[:, :end] += slopes.transpose(1, 2) @ block
            query_gradients.append((slopes @ keys[:, :end]).unflatten(1, (group, -1)))
        return (
            torch.cat(query_gradients, dim=2).reshape(query.shape),
            key_gradient.to(key.dtype).reshape(key.shape),
            value_gradient.to(value.dtype).reshape(value.shape),
        )


class Norm(nn.Module):
    """Root-mean-square normalisation."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.width))
        self.epsilon = shape.norm_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * scale * self.weight).to(hidden.dtype)


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    """Grouped-query attention; one product computes queries, keys and values."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_width
        width = shape.heads * shape.head_width
        narrow = shape.key_value_heads * shape.head_width
        self.q_proj, self.o_proj = linear(shape.width, width), linear(width, shape.width)
        self.k_proj, self.v_proj = linear(shape.width, narrow), linear(shape.width, narrow)
        self.widths = [width, narrow, narrow]

    def forward(self, hidden: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        parts = functional.linear(hidden, weight.to(hidden.dtype)).split(self.widths, dim=-1)
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        query, key = rotate(query, cosines, sines), rotate(key, cosines, sines)
        mixed: Tensor
        if hidden.is_cuda:
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        else:
            mixed = CausalAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
        return functional.linear(mixed.transpose(1, 2).flatten(2), self.o_proj.weight.to(hidden.dtype))


class FeedForward(nn.Module):
    """The gated SiLU block; one product computes gate and input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = linear(shape.width, shape.inner_width)
        self.up_proj = linear(shape.width, shape.inner_width)
        self.down_proj = linear(shape.inner_width, shape.width)

    def forward(self, hidden: Tensor) -> Tensor:
        weight = torch.cat((self.gate_proj.weight, self.up_proj.weight))
        gate, up = functional.linear(hidden, weight.to(hidden.dtype)).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, self.down_proj.weight.to(hidden.dtype))


class Layer(nn.Module):
    """One pre-normalised decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(shape), Norm(shape)
        self.self_attn, self.mlp = Attention(shape), FeedForward(shape)

    def forward(self, hidden: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cosines, sines)
        mixed: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return mixed


class Backbone(nn.Module):
    """Embedding, layers and final norm, computed in bfloat16 from float32 parameters."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape)

    def forward(self, tokens: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        hidden = self.embed_tokens(tokens).bfloat16()
        for layer in self.layers:
            hidden = layer(hidden, cosines, sines)
        normed: Tensor = self.norm(hidden)
        return normed


class TinyLlama(nn.Module):
    """The model under training; calling it gives the weighted sum of token losses."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)
        cosines, sines = rotary_tables(shape)
        self.register_buffer("cosines", cosines.bfloat16(), persistent=False)
        self.register_buffer("sines", sines.bfloat16(), persistent=False)
        self.apply(self.initialise)

    def initialise(self, module: nn.Module) -> None:
        """Small normal weights; smaller still where a layer adds to the residual stream."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.shape.initial_deviation)
        if isinstance(module, Attention | FeedForward):
            output = module.o_proj if isinstance(module, Attention) else module.down_proj
            with torch.no_grad():
                output.weight.mul_((2 * self.shape.layers) ** -0.5)

    def forward(self, tokens: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        length = tokens.size(1)
        cosines, sines = self.get_buffer("cosines")[:length], self.get_buffer("sines")[:length]
        hidden = self.model(tokens, cosines, sines).flatten(0, 1)
        head = self.model.embed_tokens.weight.to(hidden.dtype)
        total: Tensor = hidden.new_zeros((), dtype=torch.float32)
        rows_held = len(hidden) if hidden.is_cuda else LOSS_SLICE
        slices = zip(*(part.split(rows_held) for part in (hidden, targets.flatten(), weights.flatten())), strict=True)
        for rows, wanted, weight in slices:
            losses = functional.cross_entropy(functional.linear(rows, head).float(), wanted, reduction="none")
            total = total + (losses * weight).sum()
        return total


def to_transformers(model: TinyLlama) -> LlamaForCausalLM:
    """The same weights as a float32 transformers model."""
    exported = LlamaForCausalLM(model.shape.config())
    weights = dict(model.state_dict())
    exported.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}, strict=True)
    exported.train(False)
    return exported
