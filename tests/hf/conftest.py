"""Fixtures over tiny models."""

from __future__ import annotations

from typing import Any

import pytest

from hf.tiny_models import MODELS


@pytest.fixture(autouse=True)
def on_one_thread(one_thread): ...


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]()
