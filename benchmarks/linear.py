"""The linear layer for a few rows beside torch's: GB/s of weights read, in turn, best and median of several.

python benchmarks/linear.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from pagoda.kernels.native import NativeKernels, read_bandwidth

SHAPES = ((896, 896), (4864, 896), (896, 4864), (151936, 896), (8192, 2048))  # [columns, depth]
Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
STREAMED_NBYTES = 300 << 20  # more than the caches hold, so weights come from memory


def rate(linear: Linear, input: torch.Tensor, weights: list[torch.Tensor], repeats: int) -> str:
    """GB/s over all weights in turn: median and best."""
    rates = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for weight in weights:
            linear(input, weight, None)
        rates.append(sum(weight.nbytes for weight in weights) / (time.perf_counter() - start) / 1e9)
    return f"{statistics.median(rates[1:]):.1f} ({max(rates[1:]):.1f})"  # the first run warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    kernels = NativeKernels()
    print(f"{kernels.name}; memory reads at {read_bandwidth():.1f} GB/s\n")
    print("| columns x depth | rows | torch, GB/s median (best) | kernels |\n|---|---|---|---|")
    for columns, depth in SHAPES:
        count = max(1, STREAMED_NBYTES // (columns * depth * 2))
        weights = [torch.randn(columns, depth).bfloat16() for _ in range(count)]
        for rows in arguments.rows:
            input = torch.randn(rows, depth).bfloat16()
            torch_rate = rate(torch.nn.functional.linear, input, weights, arguments.repeats)
            takes = kernels.takes_linear(input, weights[0])
            own = rate(kernels.linear, input, weights, arguments.repeats) if takes else "left to torch"
            print(f"| {columns} x {depth} | {rows} | {torch_rate} | {own} |", flush=True)


if __name__ == "__main__":
    main()
