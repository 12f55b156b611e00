"""Whether a model computes the same bits however its prompts are cut: tried on a few tokens.

Which of a family's operations torch computes, and how it orders their sums, is not asked.
"""

from __future__ import annotations

import random

import torch

from pagoda.errors import ConfigError
from pagoda.formats.page import page_geometries
from pagoda.formats.plain import own_format
from pagoda.kernels.base import Kernels
from pagoda.models.model import Model
from pagoda.models.passage import Passage, can_run

PAGE_TOKENS = 32
# Of a prompt, cut in two ways: beyond what a kernel takes at a time, and a token by itself.
CUTS = ((150,), (1, 1, 7, 96, 1, 44))


def check_determinism(model: Model, kernels: Kernels) -> None:
    """Raise ConfigError if the logits of a token depend on those that are computed with it."""
    if not can_run(model):
        raise ConfigError("deterministic is for decoders that attend; this model has an encoder, or no attention.")
    generator = random.Random(0)
    most = min(CUTS[0][0], model.most_model_len or CUTS[0][0])
    token_ids = torch.tensor([generator.randrange(model.vocab_size) for _ in range(most)])
    passage = Passage(model, kernels, page_geometries(model.spec, own_format(model.dtype), PAGE_TOKENS), most)
    whole, pieces = (passage.logits_in_chunks(token_ids, _fitting(cut, most)) for cut in CUTS)
    if not torch.equal(whole.nan_to_num(), pieces.nan_to_num()):
        raise ConfigError(
            f"deterministic: a {model.config.model_type} model has layers whose results depend on the tokens that are "
            "computed with them, such as experts or recurrent ones; leave it out."
        )


def _fitting(cut: tuple[int, ...], most: int) -> list[int]:
    """As many tokens as there may be."""
    counts: list[int] = []
    for count in cut:
        counts.append(min(count, most - sum(counts)))
    return [count for count in counts if count]
