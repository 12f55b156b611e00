"""What serving costs decode: the engine alone beside the same engine with streaming clients, in turns.

    python benchmarks/serving.py --shape qwen2.5-0.5b --streams 32 --rounds 5

The server runs in a process of its own, as `pagoda serve` does. Clients are plain sockets in this one that are read now
and then, so that they take next to nothing of the same cores. Times between tokens are the engine's own, of steps in
which all sequences decode.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import socket
import statistics
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

PROMPT = "Request {} of many: the sea was calm and"


def serve(pipe: Connection, arguments: argparse.Namespace) -> None:
    """The server's process: answers "alone" with times between tokens, "served" with those of the last requests."""
    import uvicorn

    from pagoda import LLM, SamplingParams
    from pagoda.commands.shapes import shape_config
    from pagoda.llm import EMBEDDED_MODEL
    from pagoda.models.loader import model_from_config
    from pagoda.server.accepted.service import Service
    from pagoda.server.app import create_app
    from pagoda.server.backend.local import LocalBackend
    from pagoda.server.entrance.listener import listen
    from pagoda.server.ground.options import ServerOptions
    from pagoda.server.ground.tenants import Tenants

    model: Any = None
    if arguments.shape != "embedded":
        model = model_from_config(shape_config(arguments.shape), dtype="bfloat16")
    llm = LLM(
        model,
        tokenizer=EMBEDDED_MODEL,
        kv_cache_memory_bytes=512 << 20,
        num_threads=arguments.threads,
        max_model_len=1024,
    )
    options = ServerOptions(port=0, stream_interval_seconds=arguments.interval)
    listener, service = listen(options), Service(LocalBackend(llm), options, Tenants(options), "model")
    ended: list[list[float]] = []
    service.on_end = lambda job, _: ended.append(job.metrics.token_times)
    config = uvicorn.Config(create_app(service), http="httptools", loop="uvloop", log_config=None, access_log=False)
    threading.Thread(target=uvicorn.Server(config).run, kwargs={"sockets": [listener]}, daemon=True).start()
    pipe.send(listener.getsockname()[1])
    params = SamplingParams(temperature=0, max_tokens=arguments.output_tokens, ignore_eos=True)
    while (command := pipe.recv()) != "end":
        if command == "alone":
            outputs = llm.generate([PROMPT.format(i) for i in range(arguments.streams)], params, use_tqdm=False)
            pipe.send([output.metrics.token_times for output in outputs])
        else:
            pipe.send(list(ended))
        ended.clear()


def clients(port: int, streams: int, output_tokens: int) -> int:
    """Stream completions over plain sockets, which are read five times a second; the number of chunks."""
    connections = [ask(port, number, output_tokens) for number in range(streams)]
    chunks = 0
    while connections:
        time.sleep(0.2)
        for connection in list(connections):
            with contextlib.suppress(BlockingIOError):
                received = connection.recv(1 << 20)
                chunks += received.count(b"data: ")
                if not received or b"[DONE]" in received:
                    connection.close()
                    connections.remove(connection)
    return chunks


def ask(port: int, number: int, output_tokens: int) -> socket.socket:
    body = {"model": "model", "prompt": PROMPT.format(number), "max_tokens": output_tokens, "temperature": 0}
    content = json.dumps(body | {"ignore_eos": True, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)
    connection.setblocking(False)
    return connection


def step_seconds(times: list[list[float]]) -> float:
    """The mean time between tokens from when all sequences decode until the first ends."""
    start, stop = max(each[0] for each in times), min(each[-1] for each in times)
    steps = [each for each in times[0] if start <= each <= stop]
    return (steps[-1] - steps[0]) / (len(steps) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="embedded", help="embedded, or a built-in shape with random weights")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--interval", type=float, default=0.05, help="stream_interval_seconds of the server")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=serve, args=(other, arguments))
    process.start()
    other.close()  # so that a server that fails is noticed
    port = pipe.recv()
    ratios = []
    for number in range(arguments.rounds + 1):
        pipe.send("alone")
        alone = step_seconds(pipe.recv())
        begin = time.perf_counter()
        chunks = clients(port, arguments.streams, arguments.output_tokens)
        seconds = time.perf_counter() - begin
        pipe.send("served")
        served = step_seconds(pipe.recv())
        if number == 0:
            continue  # the first round warms up
        ratios.append(served / alone)
        print(
            f"step alone {alone * 1e3:7.2f} ms   served {served * 1e3:7.2f} ms   ratio {ratios[-1]:.3f}   "
            f"{arguments.streams * arguments.output_tokens / seconds:7.0f} tokens/s in {chunks} chunks",
            flush=True,
        )
    print(f"served / alone: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    pipe.send("end")
    process.terminate()


if __name__ == "__main__":
    main()
