"""What layers compute besides attention, where one kernel does what torch takes several for; torch does the rest."""

from __future__ import annotations

import torch
import triton

from pagoda.kernels.triton.coded import CodedLayers, with_unit_stride
from pagoda.kernels.triton.elementwise import add_norm_row, gate_block, norm_row, rotate_rows
from pagoda.kernels.triton.product import multiply

# Numbers of a program that works number by number.
BLOCK = 1024
# Of a row that one program has in registers.
MOST_WIDTH = 16384
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class TritonLayers(CodedLayers):
    """Tensors on the device, or on the CPU where Triton interprets; rounded where the reference rounds.

    If `deterministic`, products go through `product.py`, where torch would choose by the number of rows.
    """

    def takes_linear(self, input: torch.Tensor, weight: torch.Tensor) -> bool:
        return self._is_deterministic and input.dtype in DTYPES and input.dtype is weight.dtype

    def linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows = with_unit_stride(input.reshape(-1, input.shape[-1]))
        return multiply(rows[:, None], weight.T[None], bias).view(*input.shape[:-1], len(weight))

    def multiply_heads(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if not self._is_deterministic or input.dtype not in DTYPES or input.dtype is not weight.dtype:
            return super().multiply_heads(input, weight)
        return multiply(input, weight)

    def rms_norm(self, input: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        width = weight.numel()
        if not _takes_norm(input, weight):
            return super().rms_norm(input, weight, epsilon)
        rows = with_unit_stride(input.flatten(0, -3) if input.dim() > 2 else input.view(1, -1, width))
        out = torch.empty(input.shape, dtype=input.dtype, device=input.device)
        block = triton.next_power_of_2(width)
        norm_row[(rows.shape[0] * rows.shape[1],)](
            rows, weight, out, rows.stride()[:2], rows.shape[1], width, epsilon, block,
            num_warps=_warps(block), enable_fp_fusion=False,
        )  # fmt: skip
        return out

    def add_norm(
        self, residual: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        width = weight.numel()
        if not _takes_norm(residual, weight) or added.dtype is not residual.dtype or added.shape != residual.shape:
            return super().add_norm(residual, added, weight, epsilon)
        rows, others = (with_unit_stride(each.reshape(-1, width)) for each in (residual, added))
        total, out = (torch.empty(added.shape, dtype=added.dtype, device=added.device) for _ in range(2))
        block = triton.next_power_of_2(width)
        add_norm_row[(len(rows),)](
            rows, others, weight, total, out, rows.stride(0), others.stride(0), width, epsilon, block,
            num_warps=_warps(block), enable_fp_fusion=False,
        )  # fmt: skip
        return total, out

    def gated_silu(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if gate.dtype not in DTYPES or gate.dtype is not up.dtype or not gate.numel():
            return super().gated_silu(gate, up)
        width = up.shape[-1]
        gates, ups = (with_unit_stride(each.reshape(-1, width)) for each in (gate, up))
        out = torch.empty(up.shape, dtype=up.dtype, device=up.device)
        gate_block[(len(ups), triton.cdiv(width, BLOCK))](
            gates, ups, out, gates.stride(0), ups.stride(0), width, BLOCK, enable_fp_fusion=False
        )
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
        return self.rotate_both(input, input[:, :0], cosines, sines)[0]

    def rotate_both(
        self, query: torch.Tensor, key: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        _, query_heads, num_rows, width = query.shape
        heads = (query_heads, key.shape[1])
        outs = [query.new_empty(1, num_rows, each, width) for each in heads]
        if num_rows:
            blocks = [triton.next_power_of_2(max(each, 1)) for each in (*heads, width // 2)]
            rotate_rows[(num_rows, 2)](
                query, key, cosines.contiguous(), sines.contiguous(), *outs, query.stride()[1:3], key.stride()[1:3],
                *heads, width // 2, *blocks, enable_fp_fusion=False,
            )  # fmt: skip
        return outs[0].transpose(1, 2), outs[1].transpose(1, 2)


def _takes_norm(input: torch.Tensor, weight: torch.Tensor) -> bool:
    return weight.numel() <= MOST_WIDTH and input.dtype in DTYPES and input.dtype is weight.dtype and input.numel() > 0


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 16)
