"""Fixtures of the kernels' tests: see cases.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kernels.cases import Case, Shape, build


@pytest.fixture(scope="session")
def shape() -> type[Shape]:
    return Shape


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    return build
