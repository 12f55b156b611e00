"""One embedded model and one server for all tests of the server."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from functools import cache

import pytest

from pagoda import LLM
from server.running import Running, running


@pytest.fixture(scope="module", autouse=True)
def certificates() -> Iterator[None]:
    """Read once a module: every client reads them all, which takes longer than to be answered, and nothing is TLS.

    Other tests, which are about certificates, must not share what these trust.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", cache(ssl.create_default_context))
        yield


@pytest.fixture(scope="session")
def llm():
    with LLM(kv_cache_memory_bytes=64 << 20, num_threads=1) as llm:
        yield llm


@pytest.fixture(scope="session")
def session_server(llm, tmp_path_factory):
    with running(llm, session_dir=tmp_path_factory.mktemp("sessions")) as server:
        yield server


@pytest.fixture(scope="session")
def strict_session_server(llm):
    with running(llm, strict_fields=True) as server:
        yield server


@pytest.fixture
def strict(strict_session_server: Running):
    """A server that ignores nothing."""
    yield strict_session_server
    strict_session_server.wait_until_idle()


@pytest.fixture
def server(session_server: Running):
    """The server, with nothing in its cache; afterwards nothing is in flight."""
    session_server.llm.reset_prefix_cache()
    yield session_server
    session_server.wait_until_idle()
