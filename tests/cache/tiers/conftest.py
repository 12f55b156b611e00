"""Stores that tests talk to: a redis-server of their own."""

import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def redis_server(folder, *options, port=None):
    """The URL of a fresh server, which keeps nothing."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs redis-server on the PATH")
    port = port or free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), *options]
    with (folder / "redis.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait_for(port, process)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.kill()


def _wait_for(port, process):
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise RuntimeError("redis-server did not start; its log is in redis.log")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    """A server that all tests of this process share: each begins with an empty one (`empty_redis_url`)."""
    folder = tmp_path_factory.mktemp("redis")
    with redis_server(folder, "--unixsocket", str(folder / "redis.sock")) as url:
        yield url


@pytest.fixture
def empty_redis_url(redis_url):
    import redis

    with redis.from_url(redis_url) as client:
        client.flushall()
    return redis_url
