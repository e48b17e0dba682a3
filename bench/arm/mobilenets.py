"""The nets that phones' latencies are published for: MobileNet V1, V2, V3-large and V3-small; 224 × 224, 1000 classes.

Batch normalisation is left out: every exporter folds it into the convolution before it, and instruction counts do not
depend on the weights, which are random. Sources: Howard et al. 2017 (V1, table 1), Sandler et al. 2018 (V2, table 2),
Howard et al. 2019 (V3, tables 1 and 2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE, CLASSES = 224, 1000


def convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """With the bias that a folded normalisation leaves; keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)


def mobilenet_v1() -> nn.Module:
    """13 separable convolutions; ReLU, as in the published graph (ReLU6 costs the same: both are a clamp)."""
    rows = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    layers: list[nn.Module] = [convolution(3, 32, 3, stride=2), nn.ReLU6()]
    inputs = 32
    for outputs, stride in rows:
        layers += [convolution(inputs, inputs, 3, stride=stride, groups=inputs), nn.ReLU6()]
        layers += [convolution(inputs, outputs, 1), nn.ReLU6()]
        inputs = outputs
    return nn.Sequential(*layers, Pooled(), nn.Linear(1024, CLASSES))


class Pooled(nn.Module):
    """(n, C, H, W) → (n, C), the mean over positions."""

    def forward(self, features: Tensor) -> Tensor:
        """See the class. XNNPACK takes a mean only if it keeps its dimensions."""
        return features.mean((2, 3), keepdim=True).flatten(1)


class HardSigmoid(nn.Module):
    """relu6(x + 3) / 6: nn.Hardsigmoid brings integer constants, which leave casts outside the delegate."""

    def forward(self, values: Tensor) -> Tensor:
        """Any shape."""
        return functional.relu6(values + 3.0) * (1.0 / 6.0)


class Bottleneck(nn.Module):
    """Expand, filter each channel, weigh channels (V3), project; added to its input where the shapes allow.

    squeezed: channels of the squeeze-and-excitation's bottleneck; 0: there is none.
    """

    def __init__(
        self, inputs: int, expanded: int, outputs: int, *, kernel: int, stride: int, activation: type[nn.Module],
        squeezed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        expand = [convolution(inputs, expanded, 1), activation()] if expanded != inputs else []
        weigh = [Excitation(expanded, squeezed)] if squeezed else []
        filtered = [convolution(expanded, expanded, kernel, stride=stride, groups=expanded), *weigh, activation()]
        self.layers = nn.Sequential(*expand, *filtered, convolution(expanded, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        """(n, inputs, H, W) → (n, outputs, H/stride, W/stride)."""
        changed: Tensor = self.layers(features)
        return features + changed if self.residual else changed


class Excitation(nn.Module):
    """Each channel times a weight that the channels' means give (Hu et al. 2018, with a hard sigmoid)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.weights = nn.Sequential(
            convolution(channels, squeezed, 1), nn.ReLU(), convolution(squeezed, channels, 1), HardSigmoid()
        )

    def forward(self, features: Tensor) -> Tensor:
        """(n, channels, H, W), same shape out."""
        weighed: Tensor = features * self.weights(features.mean((2, 3), keepdim=True))
        return weighed


def mobilenet_v2() -> nn.Module:
    """17 inverted residuals of the rows (expansion, channels, repeats, stride)."""
    rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    layers: list[nn.Module] = [convolution(3, 32, 3, stride=2), nn.ReLU6()]
    inputs = 32
    for expansion, outputs, repeats, stride in rows:
        for repeat in range(repeats):
            step = 1 if repeat else stride
            block = Bottleneck(inputs, inputs * expansion, outputs, kernel=3, stride=step, activation=nn.ReLU6)
            layers.append(block)
            inputs = outputs
    return nn.Sequential(*layers, convolution(320, 1280, 1), nn.ReLU6(), Pooled(), nn.Linear(1280, CLASSES))


_Row = tuple[int, int, int, bool, type[nn.Module], int]
_R, _H = nn.ReLU, nn.Hardswish
_LARGE: list[_Row] = [
    (3, 16, 16, False, _R, 1), (3, 64, 24, False, _R, 2), (3, 72, 24, False, _R, 1), (5, 72, 40, True, _R, 2),
    (5, 120, 40, True, _R, 1), (5, 120, 40, True, _R, 1), (3, 240, 80, False, _H, 2), (3, 200, 80, False, _H, 1),
    (3, 184, 80, False, _H, 1), (3, 184, 80, False, _H, 1), (3, 480, 112, True, _H, 1), (3, 672, 112, True, _H, 1),
    (5, 672, 160, True, _H, 2), (5, 960, 160, True, _H, 1), (5, 960, 160, True, _H, 1),
]  # fmt: skip
_SMALL: list[_Row] = [
    (3, 16, 16, True, _R, 2), (3, 72, 24, False, _R, 2), (3, 88, 24, False, _R, 1), (5, 96, 40, True, _H, 2),
    (5, 240, 40, True, _H, 1), (5, 240, 40, True, _H, 1), (5, 120, 48, True, _H, 1), (5, 144, 48, True, _H, 1),
    (5, 288, 96, True, _H, 2), (5, 576, 96, True, _H, 1), (5, 576, 96, True, _H, 1),
]  # fmt: skip


def _mobilenet_v3(rows: list[_Row], last: int, hidden: int) -> nn.Module:
    """Rows: kernel, expanded, channels, squeeze-and-excitation, activation, stride."""
    layers: list[nn.Module] = [convolution(3, 16, 3, stride=2), nn.Hardswish()]
    inputs = 16
    for kernel, expanded, outputs, squeezed, activation, stride in rows:
        narrow = (expanded // 4 + 4) // 8 * 8 if squeezed else 0  # a multiple of 8, as everywhere in the family
        block = Bottleneck(
            inputs, expanded, outputs, kernel=kernel, stride=stride, activation=activation, squeezed=narrow
        )
        layers.append(block)
        inputs = outputs
    head = [nn.Linear(last, hidden), nn.Hardswish(), nn.Linear(hidden, CLASSES)]
    return nn.Sequential(*layers, convolution(inputs, last, 1), nn.Hardswish(), Pooled(), *head)


def mobilenet_v3_large() -> nn.Module:
    """15 bottlenecks, of which 8 weigh their channels."""
    return _mobilenet_v3(_LARGE, 960, 1280)


def mobilenet_v3_small() -> nn.Module:
    """11 bottlenecks, of which 9 weigh their channels."""
    return _mobilenet_v3(_SMALL, 576, 1024)


NETS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet-v1": mobilenet_v1,
    "mobilenet-v2": mobilenet_v2,
    "mobilenet-v3-large": mobilenet_v3_large,
    "mobilenet-v3-small": mobilenet_v3_small,
}


def build(name: str) -> nn.Module:
    """A net of NETS with weights that keep it alive: a plain default initialisation lets the signal die out."""
    torch.manual_seed(0)
    net = NETS[name]().eval()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return net
