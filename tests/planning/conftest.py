"""Tiny networks run fastest on one thread, also where tests share the machine."""

import pytest


@pytest.fixture(autouse=True)
def on_one_thread(one_thread): ...
