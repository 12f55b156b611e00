"""Settings every test runs under: poisoned pages, no network, the same hypothesis examples everywhere."""

import os

# Before anything reads the environment: a read of a page that was never written gives NaN, and nothing is downloaded.
os.environ["PAGODA_POISON_PAGES"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def one_thread():
    """One thread inside torch."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads():
    """At most two threads inside torch: tests share the machine."""
    import torch

    torch.set_num_threads(2)
