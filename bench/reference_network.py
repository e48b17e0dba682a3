"""A published net in the form of a front end, for the exporters. Imports torch."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from harmony.bench.arm.mobilenets import Pooled, build
from harmony.bench.devices import ModelName


class _Exit(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.gate = head, None

    def forward(self, pooled: Tensor) -> tuple[Tensor, None]:
        """(n, C, 1, 1) → logits, and no gate."""
        return self.head(pooled.flatten(1)), None


class ReferenceNetwork(nn.Module):
    """Exit 1 is the whole net: `lower` ends in its pooled features, `exit1` is its head. The rest is a stub."""

    def __init__(self, model: ModelName, stub: int) -> None:
        super().__init__()
        layers = list(cast(nn.Sequential, _delegable(build(model))))
        pool = next(index for index, layer in enumerate(layers) if isinstance(layer, Pooled))
        self.body, self.exit1 = nn.Sequential(*layers[:pool]), _Exit(nn.Sequential(*layers[pool + 1 :]))
        channels = next(layer for layer in layers[pool + 1 :] if isinstance(layer, nn.Linear)).in_features
        self.upper = nn.Conv2d(channels, stub, 1)
        self.exit2 = _Exit(nn.Linear(stub, 1000))

    def lower(self, image: Tensor) -> Tensor:
        """(n, 3, 224, 224) → (n, C, 1, 1); the form of the mean that XNNPACK delegates."""
        out: Tensor = self.body(image).mean((2, 3), keepdim=True)
        return out


class _HardSigmoid(nn.Module):
    """relu6(x + 3) / 6, which is what the operator is: XNNPACK delegates the parts, and not the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.clamp = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        out: Tensor = self.clamp(x + 3) * (1 / 6)
        return out


def _delegable(network: nn.Module) -> nn.Module:
    for name, child in network.named_children():
        if isinstance(child, nn.Hardsigmoid):
            setattr(network, name, _HardSigmoid())
        else:
            _delegable(child)
    return network
