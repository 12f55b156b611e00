"""The prompts of `cache.py`, the same ones every time and in every interpreter that has NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

VOCABULARY = 150_000
PROMPT_PAGES = {"shared": 64, "flat": 1}
SECTION_PAGES = 16
SECTION_VARIANTS = (4, 8, 16)


def prompts(shape: str, page_tokens: int) -> Iterator[list[int]]:
    """Endless prompts of one shape."""
    draw = np.random.default_rng(0)
    while True:
        sections = [] if shape == "flat" else _common_sections(draw, page_tokens)
        num_unique = PROMPT_PAGES[shape] - SECTION_PAGES * len(sections)
        sections.append(draw.integers(VOCABULARY, size=num_unique * page_tokens))
        yield np.concatenate(sections).tolist()


def _common_sections(draw: np.random.Generator, page_tokens: int) -> list[np.ndarray]:
    path = [int(draw.integers(variants)) for variants in SECTION_VARIANTS]
    size = SECTION_PAGES * page_tokens
    return [np.random.default_rng(path[: depth + 1]).integers(VOCABULARY, size=size) for depth in range(len(path))]
