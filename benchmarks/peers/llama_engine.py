"""llama.cpp through `llama-server`: CHECKPOINT/model.gguf, written by its `convert_hf_to_gguf.py --outtype bf16`."""

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

SLOTS = 32
CONTEXT = 40_960
CACHE_TYPES = {"auto": "bf16", "fp16": "f16", "int8": "q8_0", "int4": "q4_0"}


class Llama:
    has_prefix_cache = True

    def __init__(self, checkpoint: Path, threads: int, kv_cache_dtype: str, program: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        kind = CACHE_TYPES[kv_cache_dtype]
        options = ["--model", str(checkpoint / "model.gguf"), "--port", str(port), "--threads", str(threads)]
        options += ["--parallel", str(SLOTS), "--ctx-size", str(CONTEXT), "--kv-unified", "--flash-attn", "on"]
        options += ["--cache-type-k", kind, "--cache-type-v", kind, "--no-webui"]
        self._address = f"http://127.0.0.1:{port}"
        self._server = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        atexit.register(self._server.terminate)
        self._wait()

    def timed(self, prompts: list[list[int]], max_tokens: int) -> tuple[float, float]:
        start = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            times = list(pool.map(lambda prompt: self._complete(prompt, max_tokens), prompts))
        return min(first for first, _ in times) - start, max(last for _, last in times) - start

    def _complete(self, prompt: list[int], max_tokens: int) -> tuple[float, float]:
        """When the first and the last token came."""
        settings = {"n_predict": max_tokens, "ignore_eos": True, "top_k": 1, "stream": True, "return_tokens": True}
        body = json.dumps({"prompt": prompt, "cache_prompt": True, **settings}).encode()
        request = urllib.request.Request(f"{self._address}/completion", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            events = (json.loads(line[6:]) for line in answer if line.startswith(b"data: "))
            times = [time.perf_counter() for event in events if event.get("tokens")]
        return times[0], times[-1]

    def _wait(self) -> None:
        while True:
            if self._server.poll() is not None:
                raise SystemExit("llama-server ended while loading.")
            try:
                with urllib.request.urlopen(f"{self._address}/health"):
                    return
            except OSError:
                time.sleep(0.1)


if __name__ == "__main__":
    run(Llama)
