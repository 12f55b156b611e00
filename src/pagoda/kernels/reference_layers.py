"""What layers compute, in plain torch: the definition of what every other backend must compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pagoda.kernels.coded_stack import CodedStack
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.kernels.layers import CodedLayer, LayerKernels

CODED_INPUT = 32  # numbers that have a scale in common
MOST_INPUT_CODE = 127
LEAST_INPUT = 2.0**-100


def coded_input(input: torch.Tensor) -> torch.Tensor:
    """What codes of 8 bits leave of `input` [..., depth], in fp32."""
    depth = input.shape[-1]
    padded = torch.nn.functional.pad(input.float(), (0, -depth % CODED_INPUT)).unflatten(-1, (-1, CODED_INPUT))
    most = padded.abs().amax(dim=-1, keepdim=True)
    scales = most / MOST_INPUT_CODE
    codes = torch.where(most < LEAST_INPUT, 0.0, padded / scales).round()
    values: torch.Tensor = (codes * scales).flatten(-2)[..., :depth]
    return values


def by_expert(
    input: torch.Tensor, experts: torch.Tensor, columns: int, multiply: Callable[[torch.Tensor, int], torch.Tensor]
) -> torch.Tensor:
    """What `multiply` makes of the rows of `input` [rows, depth] that `experts` [rows, n] send to an expert, for each.

    Returns [rows, n, columns].
    """
    out = input.new_empty(*experts.shape, columns)
    for expert in experts.unique().tolist():
        rows, places = torch.where(experts == expert)
        out[rows, places] = multiply(input[rows], expert)
    return out


class ReferenceLayers(LayerKernels):
    """Any device, any shapes. Products are left to torch itself."""

    def takes_linear(self, input: torch.Tensor, weight: torch.Tensor) -> bool:  # noqa: ARG002
        return False

    def linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.nn.functional.linear(input, weight, bias)

    def takes_gated_linear(self, input: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> bool:  # noqa: ARG002
        return False

    def gated_linear(self, input: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return self.gated_silu(self.linear(input, gate, None), self.linear(input, up, None))

    def coded_linears(self, input: torch.Tensor, layers: Sequence[CodedLayer]) -> list[torch.Tensor]:
        rows = coded_input(input)
        outs = [(rows @ weight.decode().T, bias) for weight, bias in layers]
        return [(out if bias is None else out + bias.float()).to(input.dtype) for out, bias in outs]

    def coded_experts(
        self, input: torch.Tensor, weight: CodedStack, experts: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        def multiply(rows: torch.Tensor, expert: int) -> torch.Tensor:
            return self.coded_linear(rows, weight.matrix(expert), None if bias is None else bias[expert])

        return by_expert(input, experts, weight.rows, multiply)

    def coded_heads(self, input: torch.Tensor, weight: CodedWeight, first: int) -> torch.Tensor:
        heads, depth = input.shape[1:]
        matrices = weight.decode().unflatten(0, (heads, -1))[:, first : first + depth]
        return torch.bmm(input.float().transpose(0, 1), matrices).transpose(0, 1).to(input.dtype)

    def coded_rows(self, weight: CodedWeight, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return weight.decode_rows(numbers, dtype)

    def rms_norm(self, input: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = input.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        return weight * normed.to(input.dtype)

    def gated_silu(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(gate) * up

    def takes_rotation(self, input: torch.Tensor, cosines: torch.Tensor) -> bool:
        return input.shape[0] == 1 and cosines.shape == (1, input.shape[2], input.shape[3])

    def multiply_heads(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.bmm(input.transpose(0, 1), weight).transpose(0, 1)

    def rotate(self, input: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        first, second = input.chunk(2, dim=-1)
        crossed = torch.cat((-second, first), dim=-1)
        return input * cosines[:, None] + crossed * sines[:, None]
