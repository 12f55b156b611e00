"""The decoders of encoder-decoder models made to run packed over pages.

Transformers computes the keys and values of the encoder's output in every call, unless its cache says that it has
them: here a stand-in for that cache says so for all but new inputs. Positions, which these families count for
themselves, and the rows that need logits are handed in beside the call. T5 adds a bias to its scores that depends on
the distance of two tokens alone: it goes to attention as one row for each head. Does not know pages (attention) nor
encoders.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

# What cross-attention gets in the place of biases: a table of no distances.
_NO_BIASES = torch.zeros(0, 0)


class PackedDecoder:
    """Calls the decoder of `network`, which is changed for it, and its output head."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._positions = self._logit_rows = torch.zeros(0, dtype=torch.long)
        decoder = network.get_decoder()
        if hasattr(decoder, "embed_positions"):
            decoder.embed_positions.forward = _embedding(decoder.embed_positions, lambda: self._positions)
        _hand_over_biases(decoder)
        network.get_output_embeddings().register_forward_pre_hook(self._select)
        parameters = inspect.signature(network.forward).parameters
        self._position_arguments = {"decoder_position_ids"} & set(parameters)
        self.encoder_width: int = network.get_encoder().config.hidden_size

    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor, hidden: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits [rows of `logit_rows`, vocabulary] of packed `token_ids` at `positions`, both int64 [rows].

        `hidden` [encoder tokens, width] is what the encoder made of new inputs, one after the other.
        """
        self._positions, self._logit_rows = positions, logit_rows
        # Looked at by nobody, but one there must be.
        no_input = torch.zeros(1, self.encoder_width, device=token_ids.device)
        output = self._network(
            encoder_outputs=_EncoderOutput(last_hidden_state=(no_input if hidden is None else hidden)[None]),
            decoder_input_ids=token_ids[None],
            past_key_values=_StandIn(has_new_input=hidden is not None),
            use_cache=True,
            **dict.fromkeys(self._position_arguments, positions[None]),
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _select(self, _: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return inputs[0][:, self._logit_rows], *inputs[1:]


class _EncoderOutput(BaseModelOutput):
    """An encoder's output, without anything else that a family might look for in it."""

    def __getattr__(self, name: str) -> None: ...


class _Passing(DynamicCache):
    """Keeps nothing: attention gets the keys and values of the new tokens alone."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states


class _NoTokens:
    """Keys and values of no token, in the place of those that lie in pages."""

    keys = values = torch.zeros(1, 1, 0, 1)


class _Held:
    """Has no tokens in any layer."""

    def __init__(self) -> None:
        self.layers: defaultdict[int, _NoTokens] = defaultdict(_NoTokens)


class _Answers:
    """Whether the encoder's keys and values are held, the same for all layers."""

    def __init__(self, is_held: bool) -> None:
        self._is_held = is_held

    def get(self, _: int) -> bool:
        return self._is_held

    def __setitem__(self, layer: int, is_held: bool) -> None: ...


class _StandIn(EncoderDecoderCache):
    """What the layers ask instead of transformers' own cache, which they know by its class alone."""

    def __init__(self, has_new_input: bool) -> None:
        self.self_attention_cache = _Passing()
        self.cross_attention_cache: Any = _Passing() if has_new_input else _Held()
        self.is_updated: Any = _Answers(not has_new_input)


def _embedding(table: Any, positions: Callable[[], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The forward of an embedding of positions that looks up `positions`, whatever it is told."""
    inner = table.forward
    if "position_ids" not in inspect.signature(inner).parameters:
        return _rows_but_for_padding(table, positions)

    def forward(tokens: Any, *_: Any, **__: Any) -> torch.Tensor:
        # Sinusoids that are not kept in a table are computed by column.
        wanted = positions() if isinstance(table, torch.nn.Embedding) else positions()[:, None]
        embedded: torch.Tensor = inner(tokens, position_ids=wanted)
        return embedded

    return forward


def _rows_but_for_padding(table: Any, positions: Callable[[], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Sinusoids in a table whose first positions come after the row of padding, which tokens of padding get."""

    def forward(tokens: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        padding = table.padding_idx
        rows = torch.where(tokens[0] == padding, padding, positions() + padding + 1)
        embedded: torch.Tensor = table.weights.index_select(0, rows)[None]
        return embedded

    return forward


def _hand_over_biases(decoder: Any) -> None:
    """Let the attention layers of T5's kin give attention a table of biases by distance."""
    for attention in decoder.modules():
        if hasattr(attention, "compute_bias"):
            # Layers without use those of the layer before, and cross-attention has none.
            has_own = attention.has_relative_attention_bias
            attention.compute_bias = _giving(_biases_by_distance(attention) if has_own else _NO_BIASES)
            attention.has_relative_attention_bias = True


def _biases_by_distance(attention: Any) -> torch.Tensor:
    """[heads, distances], the last of which stands for all greater ones."""
    count = attention.relative_attention_max_distance + 1
    with torch.no_grad():
        biases: torch.Tensor = attention.compute_bias(1, count, past_seen_tokens=count - 1)
    return biases[0, :, 0].flip(1).contiguous()


def _giving(biases: torch.Tensor) -> Callable[..., torch.Tensor]:
    return lambda *_, **__: biases
