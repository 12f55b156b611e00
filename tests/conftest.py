"""Settings every test runs under: poisoned pages, no network or files of users, the same hypothesis examples."""

import os
import sys

# Before anything reads the environment: a read of a page that was never written gives NaN, and nothing is downloaded.
os.environ["PAGODA_POISON_PAGES"] = "1"
os.environ["PAGODA_CACHE_DIR"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Beside other workers one thread each: threads that wait for one another would take turns on the same cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# The same examples every time, or others with HYPOTHESIS_PROFILE=random or FUZZ_EXAMPLES (of test_fuzz.py).
settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, print_blob=True
)
settings.register_profile("random", parent=settings.get_profile("default"), derandomize=False)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("random" if "FUZZ_EXAMPLES" in os.environ else "default")
)


@pytest.fixture(scope="session", autouse=True)
def recorded_soon():
    """Decode steps are recorded after one of the kind, so that short tests replay some."""
    if replay := sys.modules.get("pagoda.models.replay"):
        replay.RUNS_BEFORE = 1


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
