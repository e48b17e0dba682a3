"""One super-network a family: every architecture of the family is its leading slice.

A weight of a narrow or shallow front end is super[name][:s0, :s1, …], so that all architectures of a family learn
together, and an architecture that no client holds can be simulated by slicing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from harmony.core.models import FrontEnd
from harmony.core.spec import Architecture, FeatureSpec, ImageSpec

Parameters = dict[str, Tensor]


class Views(NamedTuple):
    """What the heads and the cloud see of n images: embed1 (n, e), feature (n, C, H, W), embed2 (n, e)."""

    embed1: Tensor
    feature: Tensor
    embed2: Tensor


class Trunk(nn.Module):
    """A front end up to its heads."""

    def __init__(self, front_end: FrontEnd) -> None:
        super().__init__()
        self.front_end = front_end

    def forward(self, image: Tensor) -> Views:
        """(n, C, H, W) → Views."""
        hidden = self.front_end.lower(image)
        feature = self.front_end.upper(hidden)
        return Views(self.front_end.exit1.embed(hidden), feature, self.front_end.exit2.embed(feature))

    def slices(self, parameters: Mapping[str, Tensor]) -> Parameters:
        """The leading slices of `parameters` (names of FrontEnd) with this front end's shapes. Gradients flow back."""
        return {
            name: parameters[name][tuple(slice(0, side) for side in like.shape)]
            for name, like in self.front_end.named_parameters()
            if name in parameters
        }


def look(trunk: Trunk, parameters: Mapping[str, Tensor], image: Tensor) -> Views:
    """Run a skeleton on (n, C, H, W) images with its slice of a super-network."""
    weights = {f"front_end.{name}": value for name, value in trunk.slices(parameters).items()}
    views: Views = functional_call(trunk, weights, (image,))
    return views


@lru_cache(maxsize=256)
def skeleton(architecture: Architecture, image: ImageSpec, feature: FeatureSpec, classes: int) -> Trunk:
    """The architecture's modules without storage; the weights are given at every call."""
    with torch.device("meta"):
        return Trunk(FrontEnd(architecture, image, feature, outputs=classes, gate=classes))


def largest(architectures: Iterable[Architecture]) -> dict[str, Architecture]:
    """For each family the architecture that contains all of the given ones."""
    grown: dict[str, Architecture] = {}
    for one in architectures:
        so_far = grown.get(one.family, one)
        grown[one.family] = Architecture(
            family=one.family, width=max(one.width, so_far.width), depth=max(one.depth, so_far.depth)
        )
    return grown
