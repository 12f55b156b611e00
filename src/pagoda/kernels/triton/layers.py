"""What layers compute besides attention, where one kernel does what torch takes several for; torch does the rest."""

from __future__ import annotations

import torch
import triton

from pagoda.kernels.reference_layers import ReferenceLayers
from pagoda.kernels.triton.elementwise import gate_block, norm_row, rotate_row

# Numbers of a program that works number by number.
BLOCK = 1024
# Of a row that one program has in registers.
MOST_WIDTH = 16384
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class TritonLayers(ReferenceLayers):
    """Tensors on the device, or on the CPU where Triton interprets; rounded where the reference rounds."""

    def rms_norm(self, input: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        width = weight.numel()
        if width > MOST_WIDTH or input.dtype not in DTYPES or input.dtype is not weight.dtype or not input.numel():
            return super().rms_norm(input, weight, epsilon)
        rows = input.reshape(-1, width)
        out = torch.empty(input.shape, dtype=input.dtype, device=input.device)
        block = triton.next_power_of_2(width)
        norm_row[(len(rows),)](rows, weight, out, rows.stride(0), width, epsilon, block, num_warps=_warps(block))
        return out

    def gated_silu(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if gate.dtype not in DTYPES or gate.dtype is not up.dtype or not gate.numel():
            return super().gated_silu(gate, up)
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(up)
        gate_block[(triton.cdiv(out.numel(), BLOCK),)](gate, up, out, out.numel(), BLOCK, enable_fp_fusion=False)
        return out

    def takes_rotation(self, input: torch.Tensor, cosines: torch.Tensor) -> bool:
        return (
            super().takes_rotation(input, cosines)
            and input.dtype in DTYPES
            and input.dtype is cosines.dtype
            and input.stride(3) == 1
            and input.shape[3] % 2 == 0
        )

    def rotate(self, input: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        _, num_heads, num_rows, width = input.shape
        cosines, sines = cosines.contiguous(), sines.contiguous()
        out = torch.empty(1, num_rows, num_heads, width, dtype=input.dtype, device=input.device)
        if out.numel():
            heads, half = triton.next_power_of_2(num_heads), triton.next_power_of_2(width // 2)
            rotate_row[(num_rows,)](
                input, cosines, sines, out, input.stride(1), input.stride(2), num_heads, width // 2, heads, half,
                enable_fp_fusion=False,
            )  # fmt: skip
        return out.transpose(1, 2)


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 16)
