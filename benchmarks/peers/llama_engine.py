"""llama.cpp through `llama-server`: a GGUF file, or CHECKPOINT/model-bf16.gguf, by its `convert_hf_to_gguf.py`."""

from __future__ import annotations

import atexit
import json
import socket
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from workloads import run

CACHE_TYPES = {"": "f16", "unified": "f16", "bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
SPARE_TOKENS = 256


class Llama:
    """The server starts anew for each workload, with a slot of its own for each sequence.

    The variant "unified" has one memory that all slots share instead, which is how prefixes can be shared too.
    """

    has_prefix_cache = True

    def __init__(self, checkpoint: Path, threads: int, variant: str, program: str) -> None:
        kind = CACHE_TYPES[variant]
        file = checkpoint / "model-bf16.gguf" if checkpoint.is_dir() else checkpoint
        options = ["--model", str(file), "--threads", str(threads), "--flash-attn", "on"]
        options += ["--cache-type-k", kind, "--cache-type-v", kind, "--no-webui"]
        self._command = [program, *options, "--kv-unified" if variant == "unified" else "--no-kv-unified"]
        self._server: subprocess.Popen[bytes] | None = None
        self._address = ""
        atexit.register(self._stop)

    def prepare(self, sequences: int, tokens: int) -> None:
        self._stop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        room = sequences * (tokens + SPARE_TOKENS)
        options = ["--port", str(port), "--parallel", str(sequences), "--ctx-size", str(room)]
        nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._server = subprocess.Popen([*self._command, *options], **nowhere)
        self._address = f"http://127.0.0.1:{port}"
        self._wait()
        self._complete([1] * 8, 2)  # pages in the weights

    def timed(self, prompts: list[list[int]], max_tokens: int) -> tuple[float, float]:
        start = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            times = list(pool.map(lambda prompt: self._complete(prompt, max_tokens), prompts))
        return min(first for first, _ in times) - start, max(last for _, last in times) - start

    def _complete(self, prompt: list[int], max_tokens: int) -> tuple[float, float]:
        """When the first token came, and the end: tokens that are no whole character come late or never."""
        settings = {"n_predict": max_tokens, "ignore_eos": True, "top_k": 1, "stream": True, "return_tokens": True}
        body = json.dumps({"prompt": prompt, "cache_prompt": True, **settings}).encode()
        request = urllib.request.Request(f"{self._address}/completion", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            events = (json.loads(line[6:]) for line in answer if line.startswith(b"data: "))
            times = [(time.perf_counter(), len(event.get("tokens") or ())) for event in events]
        first, num_tokens = next(each for each in times if each[1])
        if num_tokens > 1:
            raise RuntimeError("llama-server held the first token back; its time is unknown.")
        return first, times[-1][0]

    def _wait(self) -> None:
        while True:
            if self._server is None or self._server.poll() is not None:
                raise SystemExit("llama-server ended while loading.")
            try:
                with urllib.request.urlopen(f"{self._address}/health"):
                    return
            except OSError:
                time.sleep(0.1)

    def _stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait()


if __name__ == "__main__":
    run(Llama)
