"""Images beside the given ones: a client's few classes, bent and blended until they cover more of what may be seen."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor

TURN, STRETCH, SHEAR, SHIFT = 0.8, 0.4, 0.3, 0.4
"""The most that an image is turned (radians), stretched (factor e^±), sheared and shifted (of half its side)."""


def widened(inputs: Tensor, random: torch.Generator) -> Tensor:
    """(n, C, H, W) scaled images → as many: the first half as they are, the others warped and blended two by two.

    Blending as in mixup (Zhang et al. 2018), but without labels: the answers are a teacher's.
    """
    kept, rest = torch.tensor_split(inputs, 2)
    warped = _warped(rest, random)
    share = torch.rand(len(rest), 1, 1, 1, generator=random)
    partner = warped[torch.randperm(len(rest), generator=random)]
    return torch.cat([kept, share * warped + (1 - share) * partner])


def _warped(inputs: Tensor, random: torch.Generator) -> Tensor:
    """Each image under an affine map of its own; what comes from outside is the image's border."""
    n = len(inputs)

    def draw(most: float) -> Tensor:
        return (2 * torch.rand(n, generator=random) - 1) * most

    turn, shear = draw(TURN), draw(SHEAR)
    across, down = torch.exp(draw(STRETCH)), torch.exp(draw(STRETCH))
    mirrored = torch.where(torch.rand(n, generator=random) < 0.5, -across, across)
    rows = [
        torch.stack([mirrored * torch.cos(turn), shear - down * torch.sin(turn), draw(SHIFT)], 1),
        torch.stack([mirrored * torch.sin(turn), down * torch.cos(turn), draw(SHIFT)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(inputs.shape), align_corners=False)
    return F.grid_sample(inputs, grid, padding_mode="border", align_corners=False)
