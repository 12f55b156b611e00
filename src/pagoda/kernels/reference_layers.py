"""What layers compute, in plain torch: the definition of what every other backend must compute."""

from __future__ import annotations

import torch

from pagoda.kernels.layers import LayerKernels


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
