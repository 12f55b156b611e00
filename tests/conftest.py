"""Settings every test runs under: poisoned pages, no network or files of users, the same hypothesis examples."""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

# Before anything reads the environment: a read of a page that was never written gives NaN, and nothing is downloaded.
os.environ["PAGODA_POISON_PAGES"] = "1"
os.environ["PAGODA_CACHE_DIR"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Threads that wait for one another sleep: on shared cores they would keep the very thread waiting that they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Beside other workers one thread each, unless a test asks for more.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# Interpreted where it is tested without a GPU, which it must be told before anything imports it, torch included.
if find_spec("triton"):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        import triton.experimental.gluon  # noqa: F401

from shared_stores import new_bucket, redis_server, s3_server

# The same examples every time, or others with HYPOTHESIS_PROFILE=random or FUZZ_EXAMPLES (of test_fuzz.py).
settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, print_blob=True
)
settings.register_profile("random", parent=settings.get_profile("default"), derandomize=False)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("random" if "FUZZ_EXAMPLES" in os.environ else "default")
)


def pytest_collection() -> None:
    """What is imported and collected stays: nothing looks through it again and again, while it grows or later."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    atexit.register(gc.unfreeze)  # at the end it is taken down like anything else
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def recorded_soon():
    """Decode steps are recorded after one of the kind, so that short tests replay some."""
    if recording := sys.modules.get("pagoda.kernels.recording"):
        recording.StepRecorder.runs_before = 1


@pytest.fixture(scope="session", autouse=True)
def fitted_to_a_short_text():
    """What a format costs is found over fewer tokens: with as many as else, loads are most of what tests of it take."""
    if format_fit := sys.modules.get("pagoda.engine.format_fit"):
        format_fit.MOST_TOKENS = 320


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    """One thread inside torch."""
    with torch_threads(1):
        yield


@pytest.fixture
def two_threads():
    """Two threads inside torch, for what must not depend on how work is shared out."""
    with torch_threads(2):
        yield


@pytest.fixture
def many_threads():
    """More threads inside torch than there are processors, so that some begin late."""
    with torch_threads(2 * (os.cpu_count() or 1) + 1):
        yield


@pytest.fixture(scope="session")
def redis_server_url(tmp_path_factory):
    """A server that all tests of this process share."""
    folder = tmp_path_factory.mktemp("redis")
    with redis_server(folder, "--unixsocket", str(folder / "redis.sock")) as url:
        yield url


@pytest.fixture
def redis_url(redis_server_url):
    """An empty store by the Redis protocol."""
    import redis

    with redis.from_url(redis_server_url) as client:
        client.flushall()
    return redis_server_url


@pytest.fixture(scope="session")
def s3_endpoint():
    """A server that all tests of this process share."""
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket_url(s3_endpoint, monkeypatch):
    """An empty bucket. Its keys and region are in the environment, as people have them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return new_bucket(s3_endpoint)
