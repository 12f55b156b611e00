"""Prompts of random tokens that begin alike, and what a model makes of them without pages and with."""

from __future__ import annotations

from typing import Any

import torch

STORY_TOKENS = 70
GREEDY = {"do_sample": False, "max_new_tokens": 20}


def prompt(num_own_tokens: int, seed: int) -> torch.Tensor:
    """The story, and so many tokens of its own."""
    generator = torch.Generator().manual_seed(7)
    story = torch.randint(1, 97, (1, STORY_TOKENS), generator=generator)
    own = torch.randint(1, 97, (1, num_own_tokens), generator=torch.Generator().manual_seed(seed))
    return torch.cat((story, own), dim=1)


class Counted:
    """How many tokens a model is given to compute."""

    def __init__(self, model: Any) -> None:
        self.num_tokens = 0
        self._handle = model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, _module: Any, args: Any) -> None:
        self.num_tokens += args[0].numel()

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
