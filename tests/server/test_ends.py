"""SIGTERM ends the server in time, whatever hangs in it, and the log says what that was."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from processes import Forked
from server.process import Process
from server.raw import Client, post
from server.running import MODEL, MOST_SECONDS, wait_until

BODY = {"model": MODEL, "prompt": "The sea was", "max_tokens": 3000, "ignore_eos": True}
SOON = ("--drain-timeout-seconds", "0.2")
HANGS = """
import sys, threading
from pagoda import cli
from pagoda.engine.engine import Engine
from pagoda.prompts import PromptReader
from pagoda.server import run

def hang(*_):
    sys.stderr.write("It hangs.\\n")
    threading.Event().wait()

run.LAST_SECONDS = 3.0
{0} = hang
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("function", "status", "answer", "logged"),
    [
        ("PromptReader.read", 0, "shutting_down", "What tenant '' sent is still being read"),
        ("Engine.step", 1, "cut", "The server did not end in 3 s; it is ended while MainThread is in EngineLoop.close"),
    ],
)
def test_what_hangs_holds_up_no_end(function: str, status: int, answer: str, logged: str) -> None:
    with Process(0, *SOON, script=HANGS.format(function)) as server:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(httpx2.post, server.url + "/v1/completions", json=BODY, timeout=MOST_SECONDS)
            wait_until(lambda: "It hangs.\n" in server.lines)
            server.process.send_signal(signal.SIGTERM)
        assert asked.result().json()["error"]["code"] == answer
        assert server.process.wait(timeout=MOST_SECONDS) == status
        server.join()
    assert any(logged in line for line in server.lines), server.lines


def test_a_client_that_does_not_read_holds_up_no_end() -> None:
    with Process(0, *SOON) as server, Client(server.url, receive_nbytes=4096) as client:
        client.send(post("/v1/completions", BODY | {"n": 32, "stream": True, "logprobs": 20}))
        client.receive_some()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=MOST_SECONDS) == 0
        server.join()
    assert any("1 requests did not end in time and are cut" in line for line in server.lines)


def full(arguments: list[str]) -> Forked:
    with Path("/dev/full").open("w") as file:
        return Forked(*arguments, stdout=file, stderr=file)


def closed(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Python itself has no streams then."""
    return subprocess.Popen(["bash", "-c", 'exec "$0" -m pagoda.cli "$@" 0<&- 1>&- 2>&-', sys.executable, *arguments])


@pytest.mark.parametrize("start", [full, closed])
def test_what_cannot_be_written_keeps_nobody_from_being_served(
    start: Callable[[list[str]], Forked | subprocess.Popen[bytes]],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start(["serve", "--port", str(port), "--kv-cache-memory-bytes", "16MiB", "--num-threads", "1"])
    url = f"http://127.0.0.1:{port}/v1/completions"
    try:
        wait_until(lambda: process.poll() is not None or is_listening(port))
        for _ in range(3):
            assert httpx2.post(url, json=BODY | {"max_tokens": 2}, timeout=MOST_SECONDS).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=MOST_SECONDS) == 0
    finally:
        process.kill()
        process.wait()


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
