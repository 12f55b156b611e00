"""The orthonormal Hadamard transform of rows, with the sums in the order of formats/rotated.py."""

import triton
import triton.language as tl


@triton.jit
def hadamard(rows, plane: tl.constexpr):
    """Of each run of `plane.rotated_channels` channels of fp32 rows [rows, channels]."""
    stages: tl.constexpr = plane.stages
    for stage in tl.static_range(stages):
        rows = _sums_and_differences(rows, stage)
    return rows * plane.factor


@triton.jit
def _sums_and_differences(rows, stage: tl.constexpr):
    """Of channels 2**stage apart."""
    count: tl.constexpr = rows.shape[0]
    channels: tl.constexpr = rows.shape[1]
    distance: tl.constexpr = 2**stage
    runs: tl.constexpr = count * channels // (2 * distance)
    first, second = tl.split(tl.permute(tl.reshape(rows, (runs, 2, distance)), (0, 2, 1)))
    turned = tl.permute(tl.join(first + second, first - second), (0, 2, 1))
    return tl.reshape(turned, (count, channels))
