"""Building blocks of the families. Only operators that export, quantise and train on a device are used.

Convolutions and normalisations are called through `convolved` and `normalised`, so that training may bring faster
kernels (`computed_by`); everything else, export above all, sees PyTorch's own.

Every weight of a narrow block is a leading slice of the same weight in a wide one, and GroupNorm's groups have a fixed
number of channels, so that a slice of a super-network is itself a network (HeteroFL, Diao et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from harmony.core.errors import ConfigError

GROUP = 8
"""Channels per normalisation group. Every width is a multiple of it."""


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with a fixed group size; its statistics are per sample, so federated averaging cannot spoil them.

    ConfigError unless `channels` is a multiple of the group size.
    """
    if channels % GROUP:
        raise ConfigError(f"a width of {channels} channels", mend=f"choose a multiple of {GROUP}")
    return nn.GroupNorm(channels // GROUP, channels)


class Kernels(Protocol):
    """How convolutions and normalisations are computed. What lies between them may be of lower precision."""

    def convolve(self, convolution: nn.Conv2d, x: Tensor) -> Tensor:
        """As the module: (n, c, h, w) → (n, outputs, h', w')."""
        ...

    def normalise(self, norm: nn.GroupNorm, x: Tensor, add: Tensor | None, *, relu: bool) -> Tensor:
        """The module's output, plus `add`, then ReLU: all (n, c, h, w)."""
        ...


class _Current:
    """What computes now; None: PyTorch."""

    kernels: Kernels | None = None


@contextmanager
def computed_by(kernels: Kernels | None) -> Iterator[None]:
    """Compute the blocks' convolutions and normalisations by these kernels within the block; None: by PyTorch."""
    before, _Current.kernels = _Current.kernels, kernels
    try:
        yield
    finally:
        _Current.kernels = before


def convolved(convolution: nn.Module, x: Tensor) -> Tensor:
    """(n, c, h, w) → the convolution's output."""
    if _Current.kernels is not None and isinstance(convolution, nn.Conv2d):
        return _Current.kernels.convolve(convolution, x)
    out: Tensor = convolution(x)
    return out


def normalised(norm: nn.Module, x: Tensor, *, add: Tensor | None = None, relu: bool = False) -> Tensor:
    """(n, c, h, w) → normalised, plus `add`, then ReLU."""
    if _Current.kernels is not None and isinstance(norm, nn.GroupNorm):
        return _Current.kernels.normalise(norm, x, add, relu=relu)
    out: Tensor = norm(x)
    out = out if add is None else add + out
    return torch.relu(out) if relu else out


def exact(x: Tensor) -> Tensor:
    """x in float32, whatever the kernels left it in."""
    return x if _Current.kernels is None else x.float()


class ConvNorm(nn.Sequential):
    """Convolution, GroupNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False), norm(outputs), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, ⌈h/stride⌉, ⌈w/stride⌉)."""
        return normalised(self[1], convolved(self[0], x), relu=True)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions around an identity (He et al. 2016), (n, c, h, w) → the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Residual sum, then ReLU."""
        return normalised(self.norm, convolved(self.second, self.first(x)), add=x, relu=True)


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise 3×3, project 1×1, identity (Sandler et al. 2018), (n, c, h, w) → the same."""

    EXPANSION = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = self.EXPANSION * channels
        self.expand = ConvNorm(channels, inner, kernel=1)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.norm1 = norm(inner)
        self.project = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm2 = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Linear bottleneck: no activation after the projection."""
        inner = normalised(self.norm1, convolved(self.depthwise, self.expand(x)), relu=True)
        return normalised(self.norm2, convolved(self.project, inner), add=x)


class PooledAttention(nn.Module):
    """Self-attention among patches (Vaswani et al. 2017) whose keys and values are pooled, (n, c, h, w) → the same.

    A head is a group of 8 channels, so that a narrow block's heads are a wide one's first heads. Keys and values come
    from a depthwise 5×5 convolution with stride 4 (as in CvT, Wu et al. 2021), which bounds the cost: 14 × 14 patches
    look at 4 × 4. Its zero padding also tells a patch where it lies. Logits are not divided by √8: the usual initial
    weights already give them a spread of about 1.
    """

    POOL = 4

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.pool = nn.Conv2d(channels, channels, 5, stride=self.POOL, padding=2, groups=channels, bias=False)
        self.query = nn.Conv2d(channels, channels, 1, bias=False)
        self.key = nn.Conv2d(channels, channels, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Identity plus attention."""
        y = normalised(self.norm, x)
        pooled = convolved(self.pool, y)
        # Three axes and torch.bmm, softmax over the last one: the forms that XNNPACK takes.
        parts = convolved(self.query, y), convolved(self.key, pooled), convolved(self.value, pooled)
        query, key, value = (_heads(part) for part in parts)
        weights = torch.softmax(torch.bmm(query.transpose(1, 2), key), dim=2)
        seen = torch.bmm(weights, value.transpose(1, 2)).transpose(1, 2)
        return x + seen.reshape(x.shape)


def _heads(x: Tensor) -> Tensor:
    """(n, c, h, w) → (n · heads, 8, h · w)."""
    n, channels, height, width = x.shape
    return x.reshape(n * channels // GROUP, GROUP, height * width)


class AttentionBlock(nn.Module):
    """Attention among patches, then two 1×1 convolutions within each (Dosovitskiy et al. 2021), each with an identity.

    (n, c, h, w) → the same.
    """

    EXPANSION = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = self.EXPANSION * channels
        self.attention = PooledAttention(channels)
        self.norm = norm(channels)
        self.expand = nn.Conv2d(channels, inner, 1, bias=False)
        self.project = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Both parts normalise what they read, not what they add to."""
        x = self.attention(x)
        inner = torch.relu(convolved(self.expand, normalised(self.norm, x)))
        return x + convolved(self.project, inner)


class SeparableDown(nn.Module):
    """Depthwise 3×3 with stride 2, then 1×1, each normalised: halves the sides (Howard et al. 2017)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride=2, padding=1, groups=inputs, bias=False)
        self.norm = norm(inputs)
        self.pointwise = ConvNorm(inputs, outputs, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, ⌈h/2⌉, ⌈w/2⌉)."""
        out: Tensor = self.pointwise(normalised(self.norm, convolved(self.depthwise, x), relu=True))
        return out


class ConvDown(ConvNorm):
    """3×3 convolution with stride 2: halves the sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, stride=2)
