"""Many clients of all kinds at one server for minutes: does it lose tokens, pages, memory or its temper?

    pagoda serve --kv-cache-memory-bytes 64MiB & python benchmarks/server_load.py --clients 200 --minutes 10

Clients stream, read slowly, go away in the middle, send prompts that are too long and JSON that is none. Every stream
that ends must have as many token ids as its usage says, and their text. Memory and the time of `/health` are sampled
and plotted; in the end no page may be in use.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from pagoda.llm import EMBEDDED_MODEL

STORIES = [f"Story {number}: the room was a pleasant one, overlooking the sea. " * 6 for number in range(40)]


@dataclass
class Load:
    """One run: what to do, and what has been seen."""

    host: str
    port: int
    until: float
    tokenizer: Any
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    health_seconds: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)


async def post(load: Load, content: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    """A request on a connection of its own; the status, and the rest to be read."""
    reader, writer = await asyncio.open_connection(load.host, load.port)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {load.host}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    )
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    status = int((await reader.readline()).split()[1])
    while (await reader.readline()).strip():
        pass
    return reader, writer, status


async def stream(load: Load, generator: random.Random, kind: str) -> None:
    """One stream, read to the end unless the client goes away."""
    count = generator.randint(8, 96)
    body = {
        "model": "pagoda-tiny",
        "prompt": generator.choice(STORIES) + f" Part {generator.randint(0, 9)}.",
        "max_tokens": count,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "return_token_ids": True,
        "seed": generator.randint(0, 1 << 30),
    }
    reader, writer, status = await post(load, json.dumps(body).encode())
    if status == 429:
        load.counts["refused 429"] += 1
        await asyncio.sleep(1)
        return
    leave_after = generator.randint(1, count) if kind == "leaves" else None
    text, tokens, usage, ended = "", [], None, False
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            ended = True
            break
        chunk = json.loads(line[6:])
        for choice in chunk["choices"]:
            text += choice["text"]
            tokens += choice["token_ids"]
        usage = chunk["usage"] or usage
        if leave_after is not None and len(tokens) >= leave_after:
            break
        if kind == "slow":
            await asyncio.sleep(0.05)
    writer.close()
    load.counts[kind] += 1
    if leave_after is None:
        shown = load.tokenizer.decode(tokens, skip_special_tokens=True)
        prompt = load.tokenizer.decode(load.tokenizer(body["prompt"]).input_ids[-6:])
        after = load.tokenizer.decode(
            [*load.tokenizer(body["prompt"]).input_ids[-6:], *tokens], skip_special_tokens=True
        )
        if not ended or usage is None or len(tokens) != count or usage["completion_tokens"] != count:
            load.wrong.append(f"{kind}: {len(tokens)} of {count} tokens, ended {ended}")
        elif text not in (shown, after[len(prompt) :]):
            load.wrong.append(f"{kind}: text {text!r} of tokens {shown!r}")


async def bad(load: Load, generator: random.Random) -> None:
    """A request that must be refused."""
    prompt = "word " * generator.randint(5000, 20000)
    bodies = (b'{"model": ', json.dumps({"model": "pagoda-tiny", "prompt": prompt}).encode(), b'{"model": "x"}', b"[1]")
    reader, writer, status = await post(load, generator.choice(bodies))
    await reader.read()
    writer.close()
    load.counts["bad"] += 1
    if status not in (400, 404):
        load.wrong.append(f"a bad request was answered with {status}")


async def client(load: Load, number: int) -> None:
    generator = random.Random(number)
    while time.monotonic() < load.until:
        kind = generator.choices(("reads", "slow", "leaves", "bad"), (6, 1, 2, 1))[0]
        try:
            await (bad(load, generator) if kind == "bad" else stream(load, generator, kind))
        except (OSError, IndexError, ValueError) as error:
            load.wrong.append(f"{kind}: {error!r}")


def get(load: Load, path: str) -> Any:
    with urllib.request.urlopen(f"http://{load.host}:{load.port}{path}", timeout=30) as answer:
        return json.loads(answer.read())


async def watch(load: Load) -> None:
    begin = time.monotonic()
    while time.monotonic() < load.until:
        started = time.monotonic()
        await asyncio.to_thread(get, load, "/health")
        load.health_seconds.append(time.monotonic() - started)
        status = await asyncio.to_thread(get, load, "/v1/kv/status")
        load.memory.append((time.monotonic() - begin, status["memory"]["process"]))
        await asyncio.sleep(0.5)


async def run(load: Load, clients: int) -> None:
    await asyncio.gather(watch(load), *(client(load, number) for number in range(clients)))
    for _ in range(100):
        groups = get(load, "/v1/kv/status")["groups"]
        if not any(group["open"] + group["in_use"] for group in groups):
            return
        await asyncio.sleep(0.1)
    load.wrong.append(f"pages are still in use: {groups}")


def plot(load: Load, file: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3))
    axes.plot([seconds for seconds, _ in load.memory], [nbytes / 2**20 for _, nbytes in load.memory])
    axes.set(xlabel="seconds", ylabel="resident memory (MiB)", ylim=(0, None))
    figure.savefig(file, bbox_inches="tight", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--plot", type=Path, help="where to draw the server's memory")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    load = Load(arguments.host, arguments.port, time.monotonic() + 60 * arguments.minutes, tokenizer)
    asyncio.run(run(load, arguments.clients))
    health = sorted(load.health_seconds)
    memory = [nbytes / 2**20 for _, nbytes in load.memory]
    half = memory[len(memory) // 2 :]
    print(dict(load.counts))
    print(
        f"/health: median {statistics.median(health) * 1e3:.1f} ms, p99 {health[int(len(health) * 0.99)] * 1e3:.1f} ms"
    )
    print(f"memory: {memory[0]:.0f} MiB at first, {half[0]:.0f} MiB at half time, {memory[-1]:.0f} MiB in the end")
    print(f"wrong: {len(load.wrong)} {load.wrong[:5]}")
    if arguments.plot:
        plot(load, arguments.plot)


if __name__ == "__main__":
    main()
