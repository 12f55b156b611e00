"""Vectors of texts equal those of transformers' own hidden states, however a text is cut."""

from __future__ import annotations

import pytest
import torch

from oracle.families import build_tiny
from pagoda.engine.embedding import Embedder, Embedding, Pooling
from pagoda.errors import UnsupportedModelError
from pagoda.kernels.reference import ReferenceKernels
from pagoda.models.model import Model
from pagoda.models.selftest import rounding_tolerance

NUM_TOKENS = 70
# Plain, windows, learned positions, latents, recurrent layers beside attention, experts.
FAMILIES = ("llama", "gemma3_text", "gpt2", "deepseek_v3", "jamba", "mixtral")


def vector_of(embedding: Embedding, num_tokens: int) -> torch.Tensor:
    vector = None
    while vector is None:
        vector = embedding.advance(num_tokens)
    return vector


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_of_the_last_hidden_states(family: str) -> None:
    network = build_tiny(family)
    vocabulary = network.config.vocab_size
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(vocabulary // 2, vocabulary, (NUM_TOKENS,), generator=generator)
    with torch.inference_mode():
        hidden = network(input_ids=tokens[None], use_cache=False, output_hidden_states=True).hidden_states[-1][0]
    embedder = Embedder(Model.from_transformers(network), ReferenceKernels())
    for pooling, pooled in ((Pooling.MEAN, hidden.mean(dim=0)), (Pooling.LAST, hidden[-1])):
        expected = pooled / pooled.norm()
        for cut in (NUM_TOKENS, 33, 9):
            vector = vector_of(embedder.begin(tokens.tolist(), pooling), cut)
            assert float(vector.norm()) == pytest.approx(1, abs=1e-6)
            assert float((vector - expected).abs().max()) <= rounding_tolerance(network.config, 1.0)


def test_both_poolings_differ_and_texts_do() -> None:
    embedder = Embedder(Model.from_transformers(build_tiny("llama")), ReferenceKernels())
    mean, last, other = (
        vector_of(embedder.begin(tokens, pooling), 8)
        for tokens, pooling in (([5, 6, 7], Pooling.MEAN), ([5, 6, 7], Pooling.LAST), ([5, 6, 8], Pooling.MEAN))
    )
    assert not torch.allclose(mean, last, atol=1e-3)
    assert not torch.allclose(mean, other, atol=1e-3)


@pytest.mark.parametrize("family", ["mamba", "t5"])
def test_models_that_do_not_attend_or_have_an_encoder_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match="Embeddings are of decoders that attend"):
        Embedder(Model.from_transformers(build_tiny(family)), ReferenceKernels())
