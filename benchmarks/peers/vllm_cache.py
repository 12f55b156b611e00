"""What vLLM's manager of blocks costs, in microseconds per block; run by an interpreter that has vLLM.

Its one argument is a `Setup` of `benchmarks/cache.py` as JSON; the last line of its output is {"new": [...], "hit":
[...]}. A prompt's life is: its request is made and its blocks hashed, they are looked up, allocated and cached, and
freed at the end. Nothing is computed.
"""

from __future__ import annotations

import json
import os
import sys
from time import process_time
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from cache_prompts import PROMPT_PAGES, prompts
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request


class Manager:
    """One group of full attention, as the scheduler of vLLM uses it."""

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        spec = FullAttentionSpec(block_size=page_tokens, num_kv_heads=1, head_size=64, dtype=torch.float16)
        config = KVCacheConfig(num_pages + 1, [], [KVCacheGroupSpec(["layer"], spec)])
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(page_tokens, sha256)
        self._manager = KVCacheManager(config, 1 << 20, page_tokens, page_tokens)
        self._params = SamplingParams(max_tokens=1)
        self._params.update_from_generation_config({}, eos_token_id=0)
        self._num_requests = 0

    def live(self, tokens: list[int]) -> int:
        """Let a prompt come and go; how many blocks were new."""
        self._num_requests += 1
        request = Request(str(self._num_requests), tokens, self._params, None, block_hasher=self._hasher)
        blocks, num_hit, *_ = self._manager.get_computed_blocks(request)
        num_new = len(tokens) - num_hit
        if self._manager.allocate_slots(request, num_new, num_hit, blocks) is None:
            raise SystemExit("vLLM found no blocks for a prompt.")
        request.num_computed_tokens = len(tokens)
        self._manager.free(request)
        return num_new


def main() -> None:
    setup: dict[str, Any] = json.loads(sys.argv[1])
    page_tokens, pages = setup["page_tokens"], PROMPT_PAGES[setup["shape"]]
    manager = Manager(setup["num_pages"], page_tokens)
    drawn = prompts(setup["shape"], page_tokens)
    num_filled = 0
    while num_filled < setup["num_pages"] * page_tokens:
        num_filled += manager.live(next(drawn))
    micros: dict[str, list[float]] = {"new": [], "hit": []}
    for _ in range(setup["num_repeats"]):
        batch = [next(drawn) for _ in range(max(setup["batch_pages"] // pages, 1))]
        for step, measured in micros.items():
            start = process_time()
            num_new = sum(map(manager.live, batch))
            spent = process_time() - start
            num_pages = num_new / page_tokens if step == "new" else pages * len(batch)
            measured.append(1e6 * spent / num_pages)
    print(json.dumps(micros))


if __name__ == "__main__":
    main()
