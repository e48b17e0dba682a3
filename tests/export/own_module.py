"""A small module of a user's own, as `--module` finds it: other operators than ours, and a part for the cloud."""

from __future__ import annotations

import torch
from torch import Tensor, nn

OWN, CLASSES = 3, 10


class Small(nn.Module):
    """Batch normalisation, ReLU6 and average pooling: what a mobile network has, and ours have not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU6())
        self.early, self.late = nn.Linear(8, OWN), nn.Linear(16, OWN)
        self.rest = nn.Linear(16, CLASSES)

    def lower(self, image: Tensor) -> Tensor:
        out: Tensor = self.first(image)
        return out

    def exit1(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.early(hidden.mean((2, 3), keepdim=True).flatten(1))
        return out

    def upper(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.second(hidden)
        return out

    def exit2(self, feature: Tensor) -> Tensor:
        out: Tensor = self.late(feature.mean((2, 3), keepdim=True).flatten(1))
        return out

    def back_end(self, feature: Tensor) -> Tensor:
        out: Tensor = self.rest(feature.mean((2, 3)))
        return out


def small() -> Small:
    torch.manual_seed(0)
    return Small()
