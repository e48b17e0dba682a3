"""The native core, built once a session, and bundles for it: one with a real front end, one with a tiny program."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from harmony.core.bundle import VECTORS, DeviceManifest, Exit, Fallback, write_vectors
from harmony.core.checkpoint import CheckpointManifest, ClientRecord, save_checkpoint
from harmony.core.config import TrainConfig
from harmony.core.data import load
from harmony.core.models import BackEnd, FrontEnd, feature_spec
from harmony.core.preprocess import Preprocessor
from harmony.core.quiet import quiet
from harmony.core.sealed import seal, sealing
from harmony.core.spec import Architecture, ClassMap, FeatureSpec, ImageSpec
from harmony.device.native_build import OVERRIDE, ensure_native
from harmony.export import export_run

OWN = (1, 4, 7)
TOKENS = (5, 3, 1, 0, 2, 4, 9, 8, 7, 6)


@pytest.fixture(scope="session")
def native_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with libharmony.so and harmony-run."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here, so the native core cannot be built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARMONY_CACHE", str(tmp_path_factory.mktemp("native")))
        patch.delenv(OVERRIDE, raising=False)
        return ensure_native()


@pytest.fixture
def native(native_build: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `native_build`, and what `engine="native"` loads."""
    monkeypatch.setenv(OVERRIDE, str(native_build))
    return native_build


@pytest.fixture(scope="session")
def images() -> NDArray[np.uint8]:
    x = load("fashion-mnist-mini").x_test[:400]
    assert x.dtype == np.uint8
    return x


@pytest.fixture(scope="session")
def real(images: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A front end with random weights, for both engines; each exit lets about half of the images pass on."""
    torch.manual_seed(0)
    folder, data = tmp_path_factory.mktemp("run"), load("fashion-mnist-mini")
    image, names, architecture = data.image_spec(), data.class_names, Architecture.parse("mobilenet-w8-d1")
    feature = feature_spec(image, channels=8)
    networks = FrontEnd(architecture, image, feature, outputs=10, gate=10), BackEnd(feature, width=8, tokens=10)
    for one in [parameter for network in networks for parameter in network.parameters()]:
        one.data += 0.3 * torch.randn_like(one)
    with torch.no_grad():
        out = networks[0].eval()(torch.from_numpy(Preprocessor(image)(images)))
    exits = (
        Exit(name="exit1", score="own_mass", threshold=_median_own_mass(out.gate1.numpy())),
        Exit(name="exit2", score="own_mass", threshold=_median_own_mass(out.gate2.numpy())),
    )
    record = ClientRecord(
        index=0, architecture=architecture, classes=ClassMap(names=names, own=OWN, tokens=TOKENS),
        exits=exits, train_images=1, holdout_images=1,
    )  # fmt: skip
    manifest = CheckpointManifest(
        harmony_version="0", run="native", method="harmony", round=1, config=TrainConfig().model_dump(mode="json"),
        dataset=data.name, image=image, feature=feature, back_end_width=8, gate=True, clients=(record,),
    )  # fmt: skip
    front, back = ({name: value.numpy() for name, value in one.state_dict().items()} for one in networks)
    save_checkpoint(folder / "checkpoint", manifest, back, {0: front})
    export_run(folder, folder / "bundles")
    return folder / "bundles" / "client-000"


def _median_own_mass(gate: NDArray[np.float32]) -> float:
    mass = np.exp(gate)[:, OWN].sum(1) / np.exp(gate).sum(1)
    return float(np.median(np.log(mass / (1 - mass))))


class TinyExit(nn.Module):
    """exit1: hidden = 2·image; exit2: feature = hidden·|hidden|, which float32 cannot always hold. Linear heads."""

    def __init__(self, values: int, number: int) -> None:
        super().__init__()
        self.logits, self.gate, self.number = nn.Linear(values, 3), nn.Linear(values, 5), number

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = x.flatten(1)
        return x * 2 if self.number == 1 else x * x.abs(), self.logits(flat), self.gate(flat)


MakeTiny = Callable[..., Path]
TINY_IMAGE = ImageSpec(height=4, width=6, channels=3, dtype="float32", mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture(scope="session")
def tiny_program() -> bytes:
    """A program without any delegate, so that every operator needs a kernel."""
    return _lowered(TinyExit, delegate=False)


def _lowered(exit_: Callable[[int, int], nn.Module], *, delegate: bool) -> bytes:
    torch.manual_seed(1)
    sample = torch.zeros(1, TINY_IMAGE.channels, TINY_IMAGE.height, TINY_IMAGE.width)
    with quiet():
        from executorch import exir
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        graphs = {
            f"exit{number}": torch.export.export(exit_(sample.numel(), number).eval(), (sample,), strict=False)
            for number in (1, 2)
        }
        config = exir.EdgeCompileConfig(_check_ir_validity=False)
        partitioner = [XnnpackPartitioner()] if delegate else []
        edge = exir.to_edge_transform_and_lower(graphs, partitioner=partitioner, compile_config=config)
        return bytes(edge.to_executorch().buffer)


class WideExit(nn.Module):
    """As a TinyExit, but through a layer of `width`·`width` weights."""

    def __init__(self, values: int, number: int, width: int = 2000) -> None:
        super().__init__()
        self.tiny, self.number = TinyExit(values, number), number
        self.wide = nn.Sequential(nn.Linear(values, width), nn.Linear(width, width), nn.Linear(width, values))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        carried, logits, gate = self.tiny(x)
        return carried + self.wide(x.flatten(1)).reshape(x.shape), logits, gate


@pytest.fixture(scope="session")
def wide_program() -> bytes:
    """A program of 32 MB of weights that XNNPACK runs."""
    return _lowered(WideExit, delegate=True)


@pytest.fixture(scope="session")
def make_tiny(tiny_program: bytes) -> MakeTiny:
    """Writes a bundle with the tiny program; `changes` replace fields of its manifest."""

    def make(folder: Path, program: bytes = tiny_program, **changes: Any) -> Path:
        image: ImageSpec = changes.get("image", TINY_IMAGE)
        exits = (
            Exit(name="exit1", score="own_mass", threshold=1e30),
            Exit(name="exit2", score="own_mass", threshold=1e30),
        )
        manifest = DeviceManifest(
            harmony_version="0", run="tiny", method="harmony", client=0,
            architecture=Architecture.parse("resnet-w8-d1"), dataset="made-up", image=image,
            feature=FeatureSpec(channels=image.channels, height=image.height, width=image.width),
            classes=ClassMap(names=("ant", "bée\n", "cat", "dog", "eel"), own=(1, 2, 4), tokens=(3, 0, 4, 1, 2)),
            exits=exits, gate=True, fallback=Fallback(), engines={"executorch": {"program": "front_end.pte"}},
            parameters=1,
        ).model_copy(update=changes)  # fmt: skip
        with sealing(folder) as draft:
            (draft / "front_end.pte").write_bytes(program)
            write_vectors(draft / VECTORS, {"image": np.zeros((1, 3, 4, 6), np.float32)})
            seal(draft, manifest)
        return folder

    return make


@pytest.fixture
def run(native_build: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """harmony-run with these arguments, in a process of its own."""

    def start(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(native_build / "harmony-run"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    return start


@pytest.fixture
def reseal() -> Callable[[Path, bytes], None]:
    """Puts another manifest into a bundle, and its hash, as somebody would who wants it to be believed."""

    def put(bundle: Path, text: bytes) -> None:
        (bundle / "manifest.json").write_bytes(text)
        (bundle / "manifest.sha256").write_text(f"{hashlib.sha256(text).hexdigest()}  manifest.json\n")

    return put


@pytest.fixture
def changed(reseal: Callable[[Path, bytes], None]) -> Callable[..., None]:
    """Replaces fields of a bundle's manifest; a dotted name reaches inside."""

    def change(bundle: Path, **fields: object) -> None:
        document = json.loads((bundle / "manifest.json").read_bytes())
        for name, value in fields.items():
            *path, last = name.split("__")
            inside = document
            for part in path:
                inside = inside[int(part) if part.isdigit() else part]
            inside[int(last) if last.isdigit() else last] = value
        reseal(bundle, json.dumps(document).encode())

    return change


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images of each of three classes, one of which the bundle did not hold."""
    data = load("fashion-mnist-mini")
    for label in (1, 4, 5):
        (tmp_path / "photos" / str(label)).mkdir(parents=True)
        for index, image in enumerate(data.x_train[data.y_train == label][:10]):
            Image.fromarray(image[:, :, 0]).save(tmp_path / "photos" / str(label) / f"{index}.png")
    return tmp_path / "photos"
