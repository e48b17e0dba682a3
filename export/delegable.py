"""Rewrites a network into operators that XNNPACK delegates, with the same answers.

XNNPACK has no GroupNorm: left as it is, every normalisation would end a delegate and cost two layout changes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class DelegableGroupNorm(nn.Module):
    """GroupNorm (Wu & He 2018, eq. 1) out of global means and grouped 1×1 convolutions, for 4D inputs.

    A 1×1 convolution with weights 1 / (channels a group) averages the per-channel means within each group; its bias
    adds epsilon. This keeps the channels-last layout, which reshaping into groups would not.
    """

    average: Tensor
    epsilon: Tensor

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        channels, self.groups = norm.num_channels, norm.num_groups
        each = channels // self.groups
        self.weight = nn.Parameter(norm.weight.detach().reshape(1, channels, 1, 1))
        self.bias = nn.Parameter(norm.bias.detach().reshape(1, channels, 1, 1))
        self.register_buffer("average", torch.full((channels, each, 1, 1), 1 / each))
        self.register_buffer("epsilon", torch.full((channels,), norm.eps))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → the same, normalised in groups."""
        mean = functional.conv2d(x.mean((2, 3), keepdim=True), self.average, groups=self.groups)
        centred = x - mean
        squares = (centred * centred).mean((2, 3), keepdim=True)
        variance = functional.conv2d(squares, self.average, self.epsilon, groups=self.groups)
        return centred * (torch.rsqrt(variance) * self.weight) + self.bias


def make_delegable(network: nn.Module) -> nn.Module:
    """Replace every GroupNorm in `network`, in place, and return it."""
    for name, child in network.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(network, name, DelegableGroupNorm(child))
        else:
            make_delegable(child)
    return network
