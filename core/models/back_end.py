"""The back end θ: the rest of the classifier, in the cloud."""

from __future__ import annotations

from torch import Tensor, nn

from harmony.core.models.blocks import ConvDown, ConvNorm, ResidualBlock, exact
from harmony.core.spec import FeatureSpec


class BackEnd(nn.Module):
    """Residual tail over the cut: feature (n, *FeatureSpec.shape) → token logits (n, tokens)."""

    def __init__(self, feature: FeatureSpec, *, width: int, tokens: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNorm(feature.channels, width),
            ResidualBlock(width),
            ConvDown(width, 2 * width),
            ResidualBlock(2 * width),
        )
        self.classify = nn.Linear(2 * width, tokens)

    def embed(self, feature: Tensor) -> Tensor:
        """(n, *FeatureSpec.shape) → (n, 2 · width), what the classifier and the contrast look at."""
        return exact(self.body(feature)).mean((2, 3))

    def forward(self, feature: Tensor) -> Tensor:
        """Token logits (n, tokens)."""
        out: Tensor = self.classify(self.embed(feature))
        return out
