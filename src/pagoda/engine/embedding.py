"""Vectors for texts, from the hidden states of the last layer of a model that was trained to write.

Computed over pages of their own, a piece at a time, so that steps of requests come between and the cache is left alone.
Knows token ids and one model; used on the engine's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch

from pagoda.errors import UnsupportedModelError
from pagoda.formats.page import page_geometries
from pagoda.formats.plain import own_format
from pagoda.kernels.base import Kernels
from pagoda.models.model import Model
from pagoda.models.passage import Passage, can_run

PAGE_TOKENS = 32
MOST_NBYTES = 256 << 20  # of the pages of a text


class Pooling(Enum):
    """Which hidden states a vector is made of: the mean of all, or the last one."""

    MEAN = "mean"
    LAST = "last"


class Embedder:
    """Makes vectors with `model`. Raises UnsupportedModelError if they cannot be had of it."""

    def __init__(self, model: Model, kernels: Kernels) -> None:
        if not can_run(model):
            raise UnsupportedModelError(
                "Embeddings are of decoders that attend; this model has an encoder, or no attention."
            )
        self._model, self._kernels = model, kernels
        self._geometries = page_geometries(model.spec, own_format(model.dtype), PAGE_TOKENS)

    @property
    def max_len(self) -> int:
        """The longest text that there is room for, in tokens."""
        return MOST_NBYTES // sum(each.page_nbytes for each in self._geometries) * PAGE_TOKENS

    def begin(self, token_ids: Sequence[int], pooling: Pooling) -> Embedding:
        """Room for a text of one token or more, of which nothing is computed yet."""
        return Embedding(Passage(self._model, self._kernels, self._geometries, len(token_ids)), token_ids, pooling)


class Embedding:
    """The vector of one text, on its way."""

    def __init__(self, passage: Passage, token_ids: Sequence[int], pooling: Pooling) -> None:
        self._passage = passage
        self._token_ids = torch.tensor(token_ids)
        self._pooling = pooling
        self._num_done = 0
        self._pooled = torch.zeros(())

    @torch.inference_mode()
    def advance(self, num_tokens: int) -> torch.Tensor | None:
        """Compute so many more tokens; after the last, the vector, fp32 [width] of length 1."""
        piece = self._token_ids[self._num_done : self._num_done + num_tokens]
        hidden = self._passage.hidden_states(piece, self._num_done)
        self._num_done += len(piece)
        self._pooled = hidden[-1] if self._pooling is Pooling.LAST else self._pooled + hidden.sum(dim=0)
        if self._num_done < len(self._token_ids):
            return None
        return torch.nn.functional.normalize(self._pooled, dim=0).cpu()
