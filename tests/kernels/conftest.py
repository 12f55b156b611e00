"""Fixtures of the kernels' tests: see cases.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest

from kernels.cases import Answer, Case, Shape, answered, build
from pagoda.kernels.base import AttentionRule


@pytest.fixture(scope="session")
def shape() -> type[Shape]:
    return Shape


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    return build


@pytest.fixture(scope="session")
def kept_case() -> Callable[[Shape], Case]:
    """One case for tests that follow one another, of all instruction sets, and change nothing in it."""
    return lru_cache(maxsize=2)(build)


@pytest.fixture(scope="session")
def kept_answer(kept_case: Callable[[Shape], Case]) -> Callable[..., Answer]:
    """What the reference makes of a case by a rule, for tests as above."""

    @lru_cache(maxsize=3)
    def answer(shape: Shape, rule: AttentionRule, has_sinks: bool = False) -> Answer:
        return answered(kept_case(shape), rule, has_sinks)

    return answer
