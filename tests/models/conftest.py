"""Tiny networks run fastest on one thread, also where tests share the machine."""

import pytest

from gguf_models import Unconfined


@pytest.fixture(autouse=True)
def on_one_thread(one_thread): ...


@pytest.fixture(scope="module")
def gguf_read_here(tmp_path_factory):
    """What GGUF files say is read once, and in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAGODA_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("pagoda.checkpoint.gguf_description._confined", Unconfined)
        yield
