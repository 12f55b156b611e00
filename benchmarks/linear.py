"""Linear layers of our own beside torch's and a plain read of memory.

Few rows: GB/s of weights, which lie in huge pages and come from memory, and the share of what a read reaches. Many
rows: GFLOP/s. All in turn, medians of several; a processor with fewer instructions is had by `--isa`, and for torch by
ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA.

python benchmarks/linear.py
python benchmarks/linear.py --isa avx2 --dtype float16 --rows 1 8 512
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import allocate, instruction_sets, read_bandwidth

SHAPES = ((896, 896), (4864, 896), (896, 4864), (151936, 896), (8192, 2048), (2048, 8192))  # [columns, depth]
Linear = Callable[[torch.Tensor, torch.Tensor, None], torch.Tensor]
STREAMED_NBYTES = 300 << 20  # more than the caches hold, so weights come from memory
FEW_ROWS = 64
WARM_UP_SECONDS = 0.005  # threads of the one before may still be awake


def seconds(linear: Linear, input: torch.Tensor, weights: list[torch.Tensor]) -> float:
    """Of a weight, all of them in turn."""
    end = time.perf_counter() + WARM_UP_SECONDS
    while time.perf_counter() < end:
        linear(input, weights[0], None)
    start = time.perf_counter()
    for weight in weights:
        linear(input, weight, None)
    return (time.perf_counter() - start) / len(weights)


def shown(row: tuple[int, int, int], times: list[tuple[float, float, float]], nbytes: int) -> str:
    columns, depth, rows = row
    bandwidth, own, torchs = (statistics.median(each) for each in zip(*times, strict=True))
    if rows <= FEW_ROWS:
        share = statistics.median(nbytes / own / 1e9 / read for read, own, _ in times)
        figures = f"{nbytes / own / 1e9:.1f} GB/s | {share:.0%} of {bandwidth:.1f} | {nbytes / torchs / 1e9:.1f}"
    else:
        flops = 2 * rows * columns * depth / 1e9
        figures = f"{flops / own:.0f} GFLOP/s | | {flops / torchs:.0f}"
    return f"| {columns} x {depth} | {rows} | {figures} | {torchs / own:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 512])
    parser.add_argument("--isa", choices=instruction_sets(), help="(default: the best there is)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    kernels, dtype = NativeKernels(arguments.isa, deterministic=True), getattr(torch, arguments.dtype)
    memory = allocate(STREAMED_NBYTES * 2)
    numbers = memory.view(dtype)
    numbers.copy_(torch.randn(1 << 20).to(dtype).repeat(-(-numbers.numel() >> 20))[: numbers.numel()])
    print(f"{kernels.name}, {arguments.dtype}\n")
    print("| columns x depth | rows | own | of a read, GB/s | torch | times as fast |\n|---|---|---|---|---|---|")
    for columns, depth in SHAPES:
        nbytes = columns * depth * dtype.itemsize
        count = max(1, STREAMED_NBYTES // nbytes)
        weights = [*numbers[: count * columns * depth].view(count, columns, depth)]
        for rows in arguments.rows:
            input = torch.randn(rows, depth).to(dtype)
            few = weights if rows <= FEW_ROWS else weights[:1]
            times = []
            for _ in range(arguments.repeats):
                bandwidth = read_bandwidth(repeats=2)
                own = seconds(kernels.linear, input, few)
                times.append((bandwidth, own, seconds(torch.nn.functional.linear, input, few)))
            print(shown((columns, depth, rows), times, nbytes), flush=True)


if __name__ == "__main__":
    main()
