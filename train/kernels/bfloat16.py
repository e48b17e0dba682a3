"""Layers in bfloat16: PyTorch's convolutions, which use AMX or tensor cores where there are any, and normalisation in
float32, on processors by norm.c.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from harmony.core.models.blocks import GROUP
from harmony.train.kernels.compiled import compiled

LAST = torch.channels_last


class BFloat16Convolutions:
    """A `Kernels`: weights stay float32, and get float32 gradients."""

    def convolve(self, convolution: nn.Conv2d, x: Tensor) -> Tensor:
        """In bfloat16, accumulated in float32. Depthwise ones stay float32: their way back has no fast kernel else."""
        kind = torch.bfloat16 if convolution.groups == 1 else torch.float32
        weight, bias = convolution.weight.to(kind), convolution.bias
        return F.conv2d(
            x.to(kind),
            weight,
            None if bias is None else bias.to(kind),
            convolution.stride,
            convolution.padding,
            convolution.dilation,
            convolution.groups,
        )

    def normalise(self, norm: nn.GroupNorm, x: Tensor, add: Tensor | None, *, relu: bool) -> Tensor:
        """As PyTorch does it."""
        out: Tensor = norm(x.float())
        out = out if add is None else out + add
        return (torch.relu(out) if relu else out).to(torch.bfloat16)


class BFloat16Kernels(BFloat16Convolutions):
    """The same for a processor, with a kernel that is compiled for it."""

    def __init__(self) -> None:
        compiled()  # a missing compiler is known before the first round

    def normalise(self, norm: nn.GroupNorm, x: Tensor, add: Tensor | None, *, relu: bool) -> Tensor:
        """One pass over memory each way."""
        if norm.num_channels != GROUP * norm.num_groups:
            raise ValueError(f"the kernel has groups of {GROUP} channels")
        x = x.to(torch.bfloat16)
        add = None if add is None else add.to(torch.bfloat16)
        out: Tensor = FusedNorm.apply(x, norm.weight, norm.bias, add, norm.eps, relu)  # type: ignore[no-untyped-call]
        return out


class FusedNorm(torch.autograd.Function):
    """[relu](normalised(x) + add), in float32 or bfloat16."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd hands its arguments over by position
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, epsilon: float, relu: bool
    ) -> Tensor:
        """x, add: (n, c, h, w) of one type; weight, bias: (c,) float32."""
        x = x.contiguous(memory_format=LAST)
        add = None if add is None else add.contiguous(memory_format=LAST)
        n, channels, height, width = x.shape
        out, weight, bias = torch.empty_like(x), weight.contiguous(), bias.contiguous()
        mean, rate = (torch.empty(n, channels // GROUP) for _ in range(2))
        given = x, add, out, weight, bias, mean, rate  # named, so that they live until the kernel is done
        compiled().forward[x.dtype](*map(_at, given), n, height * width, channels, epsilon, relu)
        ctx.save_for_backward(x, out, weight, mean, rate)
        ctx.relu, ctx.added = relu, add is not None
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what `forward` was given."""
        x, out, weight, mean, rate = ctx.saved_tensors
        slope = slopes[0].to(x.dtype).contiguous(memory_format=LAST)
        n, channels, height, width = x.shape
        to_x, to_add = torch.empty_like(x), torch.empty_like(x) if ctx.added else None
        to_weight, to_bias = torch.zeros(channels), torch.zeros(channels)
        given = slope, x, out, weight, mean, rate, to_x, to_add, to_weight, to_bias
        compiled().backward[x.dtype](*map(_at, given), n, height * width, channels, ctx.relu)
        return to_x, to_weight, to_bias, to_add, None, None


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
