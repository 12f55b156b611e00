"""What one tenant can do to another: attacks, and what they do to the time in which the other gets its first token.

    python benchmarks/hostile.py --seconds 15 -- --model ~/models/SmolLM2-135M-Instruct
    python benchmarks/hostile.py --attacks grammars samples prompts

Each attack meets a server of its own, with a key of a tenant or without any, for so many seconds. Meanwhile the other
tenant asks as it did before, `/health` is asked ten times a second, and the memory of the server and its children is
sampled. Then SIGTERM comes, while the attack goes on. What is wanted: p95 within twice that of an idle server, memory
that is bounded, and an end within the deadline. Attackers run at low priority, since they share the server's cores.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

TENANTS = '[tenants.attacker]\napi_key = "one"\n\n[tenants.victim]\napi_key = "two"\n'
DRAIN_SECONDS = 3
LAST_SECONDS = 10  # that the server may take beyond
FEW_FILES = 128
STORY = "The room was a pleasant one, at the top of the house, overlooking the sea. "


@dataclass(frozen=True)
class Target:
    """Where the server is, and how long it is attacked."""

    port: int
    until: float

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


def post(path: str, body: Any, key: str = "one") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {key}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def again(target: Target, request: bytes, connections: int) -> None:
    """Send a request over each of so many connections, and the next when it has been answered."""

    def one() -> None:
        while target.goes_on:
            with contextlib.suppress(OSError), target.connect() as connection:
                connection.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                while target.goes_on and connection.recv(1 << 16):
                    pass
            time.sleep(0.01)

    threads = [threading.Thread(target=one, daemon=True) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def hold(target: Target, start: bytes, more: bytes, connections: int) -> None:
    """Keep so many connections open that have sent `start`, and send `more` over each now and then; read nothing."""
    held: list[socket.socket] = []
    while target.goes_on:
        for connection in list(held):
            try:
                connection.send(more)
            except OSError:
                connection.close()
                held.remove(connection)
        with contextlib.suppress(OSError):
            while len(held) < connections and target.goes_on:
                connection = target.connect()
                connection.sendall(start)
                connection.setblocking(False)
                held.append(connection)
        time.sleep(0.2)


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "model", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8} | more


def grammars(target: Target) -> None:
    """H1: a schema whose automaton has billions of states."""
    patterns = [{"type": "string", "pattern": f"(a|b)*a(a|b){{{count}}}"} for count in range(10, 34)]
    form = {"type": "json_schema", "json_schema": {"name": "bomb", "schema": {"allOf": patterns}}}
    again(target, post("/v1/chat/completions", chat(response_format=form)), 8)


def headers(target: Target) -> None:
    """H2: headers without end and without a key."""
    while target.goes_on:
        with contextlib.suppress(OSError), target.connect() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n")
            while target.goes_on:
                connection.sendall(b"X-i: i\r\n" * 1000)


def half_requests(target: Target) -> None:
    """H3: 300 connections that never end their request, where 128 files may be open."""
    hold(target, b"GET / HTTP/1.1\r\nX: ", b"", 300)


def slow_bodies(target: Target) -> None:
    """Bodies of which a byte comes now and then."""
    hold(target, post("/v1/completions", b"")[:-21] + b"Content-Length: 1000000\r\n\r\n", b" ", 300)


def samples(target: Target) -> None:
    """H4: all seats."""
    body = {"model": "model", "prompt": STORY, "n": 128, "max_tokens": 1000, "ignore_eos": True}
    again(target, post("/v1/completions", body), 4)


def queue(target: Target) -> None:
    """H4: all places of the queue."""
    body = {"model": "model", "prompt": [STORY] * 64, "max_tokens": 1000, "ignore_eos": True}
    again(target, post("/v1/completions", body), 24)


def nested(target: Target) -> None:
    """H5: a body of values without end."""
    body = json.dumps(chat()).encode()[:-1] + b', "metadata": {"a": [' + b"[]," * 2_700_000 + b"[]]}}"
    again(target, post("/v1/chat/completions", body), 4)


def values(target: Target) -> None:
    """As many values as are allowed, all of which are read and checked."""
    parts = [{"type": "text", "text": "a"}] * 1300
    again(target, post("/v1/chat/completions", chat(messages=[{"role": "user", "content": parts}] * 20)), 4)


def prompts(target: Target) -> None:
    """Prompts as long as a body may be, and as long as the model takes."""
    longest = post("/v1/completions", {"model": "model", "prompt": "a b " * 2_000_000})
    fitting = post("/v1/completions", {"model": "model", "prompt": STORY * 190, "max_tokens": 8})
    threads = [threading.Thread(target=again, args=(target, each, 4)) for each in (longest, fitting)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def conversations(target: Target) -> None:
    """Conversations that take a chat template seconds."""
    tools = [{"type": "function", "function": {"name": f"tool_{number}"}} for number in range(8000)]
    again(target, post("/v1/chat/completions", chat(tools=tools)), 8)


def unread(target: Target) -> None:
    """Streams that nobody reads."""
    body = {"model": "model", "prompt": STORY, "n": 4, "max_tokens": 1000, "ignore_eos": True, "logprobs": 20}
    hold(target, post("/v1/completions", body | {"stream": True}), b"", 16)


ATTACKS: dict[str, Callable[[Target], None]] = {
    "grammars": grammars,
    "headers": headers,
    "half-requests": half_requests,
    "slow-bodies": slow_bodies,
    "samples": samples,
    "queue": queue,
    "nested": nested,
    "values": values,
    "prompts": prompts,
    "conversations": conversations,
    "unread": unread,
}


@dataclass
class Server:
    """`pagoda serve`, and what is seen of it."""

    process: subprocess.Popen[bytes]
    port: int
    memory: list[int] = field(default_factory=list)
    health_seconds: list[float] = field(default_factory=list)
    is_watched: bool = True

    def watch(self) -> None:
        """Until it ends, or nobody wants to know."""
        while self.is_watched and self.process.poll() is None:
            self.memory.append(memory_nbytes(self.process.pid))
            with contextlib.suppress(OSError):
                self.health_seconds.append(self.seconds_until(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"}"))
            time.sleep(0.1)

    def seconds_until(self, request: bytes, wanted: bytes) -> float:
        """How long it takes from a request to what is `wanted` of its answer."""
        begin = time.perf_counter()
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(request)
            answer = b""
            while wanted not in answer:
                received = connection.recv(1 << 16)
                if not received:
                    raise ConnectionError(f"the answer ended: {answer!r}")
                answer += received
        return time.perf_counter() - begin

    def end(self) -> float:
        """The seconds that it takes to end after SIGTERM."""
        begin = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)
        return time.monotonic() - begin


def memory_nbytes(pid: int) -> int:
    """Of a process and its children."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
    return total


@contextlib.contextmanager
def served(arguments: argparse.Namespace, name: str) -> Iterator[Server]:
    limit = ["prlimit", f"--nofile={FEW_FILES}"] if name == "half-requests" else []
    with tempfile.TemporaryDirectory() as folder:
        tenants = Path(folder) / "tenants.toml"
        tenants.write_text(TENANTS)
        command = [*limit, sys.executable, "-m", "pagoda.cli", "serve", "--port", "0", "--tenants", str(tenants)]
        command += ["--served-model-name", "model", "--drain-timeout-seconds", str(DRAIN_SECONDS)]
        command += arguments.serve
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(command, stderr=log)
        try:
            while b"Serving" not in (text := Path(folder, "log").read_bytes()):
                assert process.poll() is None, text.decode()
                time.sleep(0.1)
            line = next(line for line in text.splitlines() if line.startswith(b"Serving"))
            yield Server(process, int(line.rsplit(b":", 1)[1]))
        finally:
            process.kill()
            process.wait()


def first_token_seconds(server: Server, seconds: float, numbers: Iterator[int]) -> list[float]:
    """What the victim sees, who asks one thing after the other."""
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        body = {"model": "model", "prompt": f"Story {next(numbers)}. {STORY * 6}", "max_tokens": 4, "stream": True}
        found.append(server.seconds_until(post("/v1/completions", body, key="two"), b"data: {"))
        time.sleep(0.05)
    return found


def attack(name: str, target: Target) -> None:
    os.nice(19)
    ATTACKS[name](target)


def p95(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.95)]


def measure(arguments: argparse.Namespace, name: str) -> None:
    numbers = itertools.count()
    with served(arguments, name) as server:
        first_token_seconds(server, 2, numbers)  # it warms up
        idle = first_token_seconds(server, arguments.seconds, numbers)
        before = memory_nbytes(server.process.pid)
        target = Target(server.port, time.monotonic() + arguments.seconds + DRAIN_SECONDS + LAST_SECONDS)
        attacker = multiprocessing.get_context("spawn").Process(target=attack, args=(name, target), daemon=True)
        attacker.start()
        watcher = threading.Thread(target=server.watch)
        watcher.start()
        time.sleep(1)
        try:
            attacked = first_token_seconds(server, arguments.seconds, numbers)
            after = memory_nbytes(server.process.pid)
            end_seconds = server.end()
        finally:
            server.is_watched = False
            watcher.join()
            attacker.kill()
    tell(name, idle, attacked)
    print(
        f"    health p95 {p95(server.health_seconds) * 1e3:.0f} ms, most {max(server.health_seconds) * 1e3:.0f} ms   "
        f"memory {before >> 20} MiB before, {max(server.memory) >> 20} at most, {after >> 20} after   "
        f"ended {end_seconds:.1f} s after SIGTERM, status {server.process.returncode}"
        f"{'' if end_seconds <= DRAIN_SECONDS + LAST_SECONDS else ': TOO LATE'}",
        flush=True,
    )


def tell(name: str, idle: list[float], attacked: list[float]) -> None:
    ratio = p95(attacked) / p95(idle)
    shown = [
        f"{statistics.median(each) * 1e3:.0f} / {p95(each) * 1e3:.0f} ms ({len(each)})" for each in (idle, attacked)
    ]
    verdict = "" if ratio <= 2 else "   MORE THAN TWICE"
    print(f"{name:14} TTFT p50 / p95 idle {shown[0]}, attacked {shown[1]}, p95 {ratio:.2f} times{verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15, help="of each attack, and of idleness before")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("serve", nargs="*", help="options of `pagoda serve`, after --")
    arguments = parser.parse_args()
    for name in arguments.attacks:
        measure(arguments, name)


if __name__ == "__main__":
    main()
