"""Front ends: a family's extractor in two stages, with an early exit after each.

    image ─ stem ─ stage 1 ─┬─ stage 2 ─ neck ─┬─▶ feature (the cut)
                            └ exit 1           └ exit 2

An exit is a small trunk and up to two linear heads over it: the personal head over all classes (export keeps the rows
of the client's own), and the gate, one all-class head shared by all clients, whose mass on the own classes tells
in- from out-of-distribution inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from harmony.core.models.blocks import (
    AttentionBlock,
    ConvDown,
    ConvNorm,
    InvertedResidual,
    ResidualBlock,
    SeparableDown,
    exact,
)
from harmony.core.spec import Architecture, FeatureSpec, ImageSpec

FEATURE_CHANNELS = 32
EXIT_WIDTH = 32
STAGE_SIDE = 18
"""Stage 1 works on at most this side; the stem halves larger images until they fit."""


class Family(NamedTuple):
    """How a family builds its parts: a block keeps the shape, a down-sampler halves the sides."""

    block: Callable[[int], nn.Module]
    down: Callable[[int, int], nn.Module]


FAMILIES: dict[str, Family] = {
    "resnet": Family(ResidualBlock, ConvDown),
    "mobilenet": Family(InvertedResidual, SeparableDown),
    "patch": Family(AttentionBlock, ConvDown),
}


class FrontOut(NamedTuple):
    """What a front end says of n images. gate1, gate2: None without gate heads."""

    logits1: Tensor
    gate1: Tensor | None
    feature: Tensor
    logits2: Tensor
    gate2: Tensor | None


class ExitHead(nn.Module):
    """Trunk, global mean, then the personal head and the gate."""

    def __init__(self, channels: int, width: int, outputs: int, gate: int | None) -> None:
        super().__init__()
        self.trunk = nn.Sequential(ConvNorm(channels, width, stride=2), ConvNorm(width, width))
        self.head = nn.Linear(width, outputs)
        self.gate = None if gate is None else nn.Linear(width, gate)

    def embed(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) → (n, width)."""
        # keepdim, then flatten: XNNPACK delegates this form of the global mean, and not the one that drops the axes
        out: Tensor = exact(self.trunk(x)).mean((2, 3), keepdim=True).flatten(1)
        return out

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Personal logits (n, outputs) and gate logits (n, gate) or None."""
        embedding = self.embed(x)
        return self.head(embedding), None if self.gate is None else self.gate(embedding)


class FrontEnd(nn.Module):
    """φ_k and its exits for one architecture.

    outputs: columns of the personal heads; gate: columns of the gate heads, or None for none. ConfigError for an
    unknown family.
    """

    def __init__(
        self, architecture: Architecture, image: ImageSpec, feature: FeatureSpec, *, outputs: int, gate: int | None
    ) -> None:
        super().__init__()
        family = family_of(architecture)
        width, depth = architecture.width, architecture.depth
        self.stem = _stem(image, width)
        self.stage1 = nn.Sequential(*(family.block(width) for _ in range(depth)))
        self.exit1 = ExitHead(width, EXIT_WIDTH, outputs, gate)
        self.down = family.down(width, 2 * width)
        self.stage2 = nn.Sequential(*(family.block(2 * width) for _ in range(depth)))
        self.neck = ConvNorm(2 * width, feature.channels, kernel=1)
        self.exit2 = ExitHead(feature.channels, EXIT_WIDTH, outputs, gate)

    def lower(self, image: Tensor) -> Tensor:
        """Stem and stage 1: (n, C, H, W) → hidden (n, width, h, w)."""
        out: Tensor = self.stage1(self.stem(image))
        return out

    def upper(self, hidden: Tensor) -> Tensor:
        """Stage 2 and neck: hidden → feature (n, *FeatureSpec.shape)."""
        return exact(self.neck(self.stage2(self.down(hidden))))

    def forward(self, image: Tensor) -> FrontOut:
        """Both exits and the feature of (n, C, H, W) scaled images."""
        hidden = self.lower(image)
        feature = self.upper(hidden)
        logits1, gate1 = self.exit1(hidden)
        logits2, gate2 = self.exit2(feature)
        return FrontOut(logits1, gate1, feature, logits2, gate2)


def family_of(architecture: Architecture) -> Family:
    """The architecture's family; ConfigError if there is none of that name."""
    return FAMILIES[architecture.known().family]


def feature_spec(image: ImageSpec, channels: int = FEATURE_CHANNELS) -> FeatureSpec:
    """The cut that every front end for such images ends in."""
    halvings = _stem_convolutions(image) + 1
    return FeatureSpec(channels=channels, height=-(-image.height // 2**halvings), width=-(-image.width // 2**halvings))


def _stem_convolutions(image: ImageSpec) -> int:
    side, count = -(-max(image.height, image.width) // 2), 1
    while side > STAGE_SIDE:
        side, count = -(-side // 2), count + 1
    return count


def _stem(image: ImageSpec, width: int) -> nn.Sequential:
    inputs = [image.channels, *[width] * (_stem_convolutions(image) - 1)]
    return nn.Sequential(*(ConvNorm(channels, width, stride=2) for channels in inputs))
