"""The first token of a long prefix from tiers beside computing it and beside reading its bytes, and decodes meanwhile.

python benchmarks/tiers.py
python benchmarks/tiers.py --prefix 8192 --repeats 3 --format int8
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

from pagoda import LLM, SamplingParams
from pagoda.cache.prefix.held import Reason
from pagoda.commands.shapes import shape_config
from pagoda.models.loader import model_from_config
from pagoda.models.model import Model

SHAPE = "qwen2.5-0.5b"
VOCABULARY = 150_000
ONE_TOKEN = SamplingParams(temperature=0, max_tokens=1)
BLOCK_NBYTES = 1 << 20
DECODERS = 4
DECODED_TOKENS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefix", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--format", default="auto")
    parser.add_argument("--folder", type=Path, help="where the disk tier lies (default: a temporary folder)")
    arguments = parser.parse_args()
    model = model_from_config(shape_config(SHAPE), dtype="bfloat16")
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        first_tokens(model, folder, arguments)
        decodes(model, folder, arguments)
    finally:
        shutil.rmtree(folder)


def first_tokens(model: Model, folder: Path, arguments: argparse.Namespace) -> None:
    """Seconds to the first token, each way by turns."""
    found: dict[str, list[float]] = {}
    for repeat in range(arguments.repeats):
        disk = folder / f"disk-{repeat}"
        prefix = random.Random(repeat).choices(range(VOCABULARY), k=arguments.prefix)
        with make(model, arguments.format, kv_disk=str(disk)) as llm:
            note(found, "computed", first_token(llm, prefix, 0))
        forget_files(disk)
        with make(model, arguments.format, kv_disk=str(disk)) as llm:
            forget_files(disk)
            note(found, "from disk to memory that was never used", first_token(llm, prefix, 1))
            evict(llm)
            forget_files(disk)
            note(found, "from disk, not in the page cache", first_token(llm, prefix, 6))
            evict(llm)
            note(found, "from disk, in the page cache", first_token(llm, prefix, 7))
        forget_files(disk)
        note(found, "plain read of the same files", timed(lambda folder=disk: read_files(folder)))
        note(found, "plain read, in the page cache", timed(lambda folder=disk: read_files(folder)))
        with make(model, arguments.format, kv_host_bytes=1 << 30, kv_disk=str(disk)) as llm:
            first_token(llm, prefix, 3)
            evict(llm)
            note(found, "from host memory", first_token(llm, prefix, 4))
            note(found, "in the pool", first_token(llm, prefix, 5))
        nbytes = sum(each.stat().st_size for each in disk.rglob("*") if each.is_file())
        shutil.rmtree(disk)
    computed = statistics.median(found["computed"])
    print(f"prefix of {arguments.prefix} tokens, {nbytes / 1e6:.0f} MB of pages in {arguments.format}")
    print("| first token | seconds, median | least | most | of computing | MB/s |")
    print("|---|---|---|---|---|---|")
    for name, seconds in found.items():
        median = statistics.median(seconds)
        rate = f"{nbytes / 1e6 / median:.0f}" if name != "computed" else ""
        print(f"| {name} | {median:.3f} | {min(seconds):.3f} | {max(seconds):.3f} | {median / computed:.4f} | {rate} |")


def decodes(model: Model, folder: Path, arguments: argparse.Namespace) -> None:
    """How fast sequences decode beside others whose prefix is in the pool, and beside such that come from tiers."""
    prefix = random.Random(99).choices(range(VOCABULARY), k=min(arguments.prefix, 2048))
    speeds: dict[str, list[float]] = {"pool": [], "disk": [], "host": []}
    for name, options in (("disk", {"kv_disk": str(folder / "d")}), ("host", {"kv_host_bytes": 1 << 30})):
        with make(model, arguments.format, **options) as llm:
            first_token(llm, prefix, 0)
            llm.engine.residency.flush()
            decode_speed(llm, lambda: None)
            for _ in range(arguments.repeats):
                speeds["pool"].append(decode_speed(llm, lambda llm=llm: first_token(llm, prefix, 1)))
                speeds[name].append(decode_speed(llm, lambda llm=llm: come_back(llm, prefix)))
    beside_pool = statistics.median(speeds["pool"])
    print(f"\n{DECODERS} sequences decode beside others that begin with {len(prefix)} tokens")
    print("| these come from | tokens/s, median | least | most | of the pool's |")
    print("|---|---|---|---|---|")
    for name, found in speeds.items():
        median = statistics.median(found)
        print(f"| {name} | {median:.1f} | {min(found):.1f} | {max(found):.1f} | {median / beside_pool:.3f} |")


def decode_speed(llm: LLM, beside: Callable[[], object]) -> float:
    """Tokens per second of `DECODERS` sequences, while `beside` is done once every tenth of a second."""
    prompts = [random.Random(seed).choices(range(VOCABULARY), k=64) for seed in range(DECODERS)]
    is_over = Event()

    def go_on() -> None:
        while not is_over.wait(0.1):
            beside()

    thread = Thread(target=go_on)
    thread.start()
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=DECODED_TOKENS, ignore_eos=True))
    is_over.set()
    thread.join()
    seconds = max(each.metrics.last_token for each in outputs) - min(each.metrics.first_token for each in outputs)
    return DECODERS * (DECODED_TOKENS - 1) / seconds


def come_back(llm: LLM, prefix: list[int]) -> None:
    evict(llm)
    first_token(llm, prefix, 1)


def make(model: Model, format: str, **options: object) -> LLM:
    return LLM(model, kv_cache_dtype=format, kv_cache_memory_bytes=512 << 20, skip_tokenizer_init=True, **options)


def first_token(llm: LLM, prefix: list[int], last: int) -> float:
    """Seconds until the token after `prefix` and one more."""
    [output] = llm.generate([[*prefix, last]], ONE_TOKEN)
    return output.metrics.ttft_seconds


def evict(llm: LLM) -> None:
    """Let all that is idle go for want of room, and wait until tiers have it."""
    for group in llm.engine._cache.groups:
        llm.loop.call(lambda group=group: group.holdings.evict_all(Reason.ROOM)).result()
    llm.engine.residency.flush()


def note(found: dict[str, list[float]], name: str, seconds: float) -> None:
    found.setdefault(name, []).append(seconds)


def timed(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def read_files(folder: Path) -> None:
    """Read all files once, as plainly as can be."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(BLOCK_NBYTES):
                    pass


def forget_files(folder: Path) -> None:
    """Let the page cache forget them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
