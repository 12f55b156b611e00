"""The proof at load that a family gives the same logits through pages as by Hugging Face's own attention.

A tiny model of the same configuration class runs two packed sequences through pages in fp32: a ragged prefill, then a
decode step mixed with a chunk of prefill. It must equal transformers' eager attention over each whole sequence. This
catches what discovery cannot see: masks of a model's own, indexers, mixers that forget, positions that restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, zip_longest
from typing import Any

import torch

from pagoda.errors import UnsupportedModelError
from pagoda.formats.page import page_geometries
from pagoda.formats.plain import FP32
from pagoda.formats.state import StateGeometry
from pagoda.kernels.base import GroupView
from pagoda.kernels.reference import ReferenceKernels
from pagoda.layouts.spec import Reach
from pagoda.models.attention import EncoderTokens, PagedStep
from pagoda.models.build import random_network
from pagoda.models.decoder_config import decoder_config, num_decoder_layers
from pagoda.models.encoder import EncoderInput
from pagoda.models.model import Model
from pagoda.models.quiet import quiet
from pagoda.models.sites import bind_sites
from pagoda.models.states import StepStates, typed_states
from pagoda.models.tiny import shrink

PAGE_TOKENS = 16
SEQUENCE_TOKENS = (37, 23)
# What they give the encoder to read, if there is one.
ENCODER_TOKENS = (21, 34)
# Tokens of each sequence per step: two prefills cut in the middle of a page, decode beside prefill, and the rest.
STEPS = ((19, 5), (1, 17), (17, 1))


class PagedRun:
    """Pages and states for a few short sequences and the model that fills them."""

    def __init__(self, model: Model, inputs: Sequence[EncoderInput] = ()) -> None:
        """Reserve pages for `SEQUENCE_TOKENS` and for the tokens of encoder `inputs` in every layer group."""
        self._model = model
        self._inputs = inputs
        self._capacities = [
            [each.num_tokens for each in inputs] if group.reach is Reach.ENCODER else list(SEQUENCE_TOKENS)
            for group in model.spec.groups
        ]
        geometries = page_geometries(model.spec, FP32, PAGE_TOKENS)
        pools = [
            torch.zeros(sum(map(_pages, lengths)), geometry.page_nbytes, dtype=torch.uint8)
            for geometry, lengths in zip(geometries, self._capacities, strict=True)
        ]
        self._kernels = ReferenceKernels()
        self._sites = bind_sites(model.discovered, self._kernels, geometries, pools, {}).sites
        geometry = StateGeometry(model.spec.states, torch.float32.itemsize)
        slots = torch.zeros(len(SEQUENCE_TOKENS), geometry.page_nbytes, dtype=torch.uint8)
        self._states = typed_states(geometry, slots, torch.float32)

    def logits(self, sequences: list[torch.Tensor]) -> list[torch.Tensor]:
        """The logits of every token, computed in `STEPS`."""
        done = (0,) * len(sequences)
        parts: list[list[torch.Tensor]] = [[] for _ in sequences]
        for counts in STEPS:
            logits = self.forward(sequences, done, counts, torch.arange(sum(counts)))
            for part, rows in zip(parts, torch.split(logits, list(counts)), strict=True):
                part.append(rows)
            done = tuple(past + count for past, count in zip(done, counts, strict=True))
        return [torch.cat(part) for part in parts]

    def forward(
        self, sequences: list[torch.Tensor], done: tuple[int, ...], counts: tuple[int, ...], rows: torch.Tensor
    ) -> torch.Tensor:
        """One step: the next `counts` tokens of each sequence after the `done` ones; logits of the packed `rows`."""
        spans = [(past, past + count) for past, count in zip(done, counts, strict=True)]
        tokens = torch.cat([sequence[start:stop] for sequence, (start, stop) in zip(sequences, spans, strict=True)])
        positions = torch.cat([torch.arange(start, stop) for start, stop in spans])
        lengths = [stop for _, stop in spans]
        views = [
            _view(counts, capacities if group.reach is Reach.ENCODER else lengths, capacities)
            for group, capacities in zip(self._model.spec.groups, self._capacities, strict=True)
        ]
        slots = _view(counts, lengths, [1] * len(counts))
        states = StepStates(self._states, slots, [()] * len(counts)) if self._states else None
        encoder_tokens = None if any(done) else self._encoder_tokens()
        step = PagedStep(self._kernels.layers, self._sites, (*views, slots), states, encoder_tokens)
        return self._model.forward(tokens, positions, rows, step)

    def _encoder_tokens(self) -> EncoderTokens | None:
        """What the encoder makes of all inputs, which the first step stores."""
        encoder, lengths = self._model.encoder, [each.num_tokens for each in self._inputs]
        if encoder is None:
            return None
        return EncoderTokens(
            torch.cat([encoder.encode(each) for each in self._inputs]), _view(lengths, lengths, lengths)
        )


def self_test(config: Any) -> None:
    """Refuse the family of `config` if its logits through pages differ from transformers' own."""
    try:
        error, tolerance = paged_error(tiny_network(config))
    except UnsupportedModelError:
        raise
    except Exception as failure:
        raise UnsupportedModelError(
            f"{config.model_type} cannot be tested: no small copy of this configuration runs in transformers: {failure}"
        ) from failure
    if not error <= tolerance:
        raise UnsupportedModelError(
            f"{config.model_type} gives other logits through pages than by its own attention: a tiny model differs by "
            f"{error:.2g}, rounding explains {tolerance:.2g}. Pagoda would run this family wrongly."
        )


def tiny_network(config: Any, seed: int = 0) -> Any:
    """A tiny transformers model of the family of `config`: fp32, eager attention, weights that make logits differ."""
    network = random_network(shrink(config), "eager", seed=seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        _spread(network)
    return network


def paged_error(network: Any) -> tuple[float, float]:
    """The largest difference between paged and eager logits, and how much of it fp32 rounding explains."""
    sequences = _random_tokens(network.config, SEQUENCE_TOKENS)
    with quiet(), torch.inference_mode():
        model = Model.from_transformers(network)
        inputs = random_inputs(model)
        expected = [_eager_logits(network, *each) for each in zip_longest(sequences, inputs)]
        got = PagedRun(model, inputs).logits(sequences)
    error = max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True))
    return error, rounding_tolerance(network.config, max(float(logits.abs().max()) for logits in expected))


def random_inputs(model: Model) -> list[EncoderInput]:
    """One for each sequence, of `ENCODER_TOKENS` if the encoder reads text; none without an encoder."""
    if model.encoder is None:
        return []
    if model.encoder.reads_text:
        return [
            model.encoder.input_of_tokens(tokens.tolist()) for tokens in _random_tokens(model.config, ENCODER_TOKENS)
        ]
    generator = torch.Generator().manual_seed(2)
    shape = model.encoder.feature_shape
    return [model.encoder.input_of_features(torch.randn(shape, generator=generator)) for _ in SEQUENCE_TOKENS]


def _eager_logits(network: Any, tokens: torch.Tensor, input: EncoderInput | None) -> torch.Tensor:
    if input is None:
        output = network(input_ids=tokens[None], use_cache=False)
    else:
        inputs = {network.get_encoder().main_input_name: input.values[None]}
        output = network(**inputs, decoder_input_ids=tokens[None], use_cache=False)
    logits: torch.Tensor = output.logits[0].float()
    return logits


def rounding_tolerance(config: Any, largest_logit: float) -> float:
    """How far two orders of summation may drift apart in fp32: units in the last place, growing with depth."""
    depth = num_decoder_layers(config) or 1
    return float(256 * depth * torch.finfo(torch.float32).eps * largest_logit)


def _random_tokens(config: Any, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Token ids from the upper half of the vocabulary, where no family keeps its special tokens."""
    vocab_size = decoder_config(config).vocab_size
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocab_size // 2, vocab_size, (length,), generator=generator) for length in lengths]


def _spread(network: Any) -> None:
    """Weights wide enough that a wrong mask or position moves the logits visibly, whatever the family's own scale."""
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)


def _view(counts: Sequence[int], lengths: Sequence[int], capacities: Sequence[int]) -> GroupView:
    """A view of sequences with so many new tokens, tokens in all, and room for `capacities`."""
    return GroupView(
        page_indices=_int32(reversed(range(sum(map(_pages, capacities))))),  # any order must do
        page_starts=_int32(accumulate(map(_pages, capacities), initial=0)),
        query_starts=_int32(accumulate(counts, initial=0)),
        context_lengths=_int32(lengths),
    )


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE_TOKENS)


def _int32(values: Any) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.int32)
