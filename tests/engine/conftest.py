"""The model of the tests of the engine; those that need another one have their own."""

from __future__ import annotations

import pytest

from engine.tiny import tiny_model
from pagoda.models.loader import Model


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()
