"""A small front end that can learn, made by hand, and pictures that it can tell apart. No exporter is needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from harmony.core.bundle import VECTORS, CloudManifest, DeviceManifest, Exit, Fallback, write_vectors
from harmony.core.sealed import seal, sealing
from harmony.core.signing_keys import SecretKey
from harmony.core.spec import Architecture, ClassMap, FeatureSpec, ImageSpec
from harmony.core.training import Head, Training
from harmony.core.training_parts import PARTS_KEY, Part, parts_text
from harmony.export.training_onnx import step_to_onnx
from harmony.export.training_step import Step, Weights, trace

Floats = NDArray[np.float32]
NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
OWN = (0, 1, 2)
WIDTH = 8
IMAGE = ImageSpec(height=8, width=8, channels=1, mean=(0.4,), std=(0.3,))
CUT = FeatureSpec(channels=WIDTH, height=4, width=4)
WEIGHTS = {
    "exit1": ("conv", "head.weight", "head.bias", "gate.weight", "gate.bias"),
    "exit2": ("conv", "head.weight", "head.bias", "gate.weight", "gate.bias"),
}


class Tiny(nn.Module):
    """Two convolutions, an exit after each over the mean of its planes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.ParameterDict(
            {"exit1": torch.randn(WIDTH, 1, 3, 3) / 2, "exit2": torch.randn(WIDTH, WIDTH, 3, 3) / 4}
        )
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(OWN)) for name in WEIGHTS})
        self.gates = nn.ModuleDict({name: nn.Linear(WIDTH, len(NAMES)) for name in WEIGHTS})

    def weights(self, exit_: str) -> dict[str, Floats]:
        """By the names that the files use."""
        found = {"conv": self.conv[exit_]}
        for kind, module in (("head", self.heads[exit_]), ("gate", self.gates[exit_])):
            found |= {f"{kind}.{name}": value for name, value in module.named_parameters()}
        return {f"{exit_}.{name}": value.detach().numpy() for name, value in found.items()}

    def onnx(self, exit_: str) -> bytes:
        source, carried, number = ("image", "hidden", "1") if exit_ == "exit1" else ("hidden", "feature", "2")
        stride = 2 if exit_ == "exit1" else 1
        nodes = [
            helper.make_node("Conv", [source, f"{exit_}.conv"], ["raw"], strides=[stride] * 2, pads=[1] * 4),
            helper.make_node("Relu", ["raw"], [carried]),
            helper.make_node("ReduceMean", [carried, "axes"], ["embedding"], keepdims=0),
            *(_linear(f"{exit_}.{kind}", f"{out}{number}") for kind, out in (("head", "logits"), ("gate", "gate"))),
        ]  # fmt: skip
        constants = [numpy_helper.from_array(value, key) for key, value in self.weights(exit_).items()]
        constants.append(numpy_helper.from_array(np.asarray([2, 3]), "axes"))
        shapes: dict[str, tuple[int, ...]] = {"image": (1, 1, 8, 8)}
        shapes |= dict.fromkeys(("hidden", "feature"), (1, WIDTH, 4, 4))
        shapes |= {f"logits{number}": (1, len(OWN)), f"gate{number}": (1, len(NAMES))}
        outputs = [_port(one, shapes[one]) for one in (carried, f"logits{number}", f"gate{number}")]
        graph = helper.make_graph(nodes, exit_, [_port(source, shapes[source])], outputs, constants)
        return _model(graph)

    def vectors(self, count: int = 3) -> dict[str, Floats]:
        image = torch.from_numpy(np.random.default_rng(1).normal(0, 1, (count, 1, 8, 8)).astype(np.float32))
        found: dict[str, Tensor] = {"image": image}
        with torch.no_grad():
            hidden = functional.conv2d(image, self.conv["exit1"], stride=2, padding=1).relu()
            feature = functional.conv2d(hidden, self.conv["exit2"], padding=1).relu()
            for number, (name, carried) in enumerate((("exit1", hidden), ("exit2", feature)), 1):
                found["hidden" if number == 1 else "feature"] = carried
                found[f"logits{number}"] = self.heads[name](carried.mean((2, 3)))
                found[f"gate{number}"] = self.gates[name](carried.mean((2, 3)))
        return {name: value.numpy() for name, value in found.items()}


def _linear(weights: str, output: str) -> onnx.NodeProto:
    return helper.make_node("Gemm", ["embedding", f"{weights}.weight", f"{weights}.bias"], [output], transB=1)


def _port(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString()
    return serialised


def head_logits(weights: Weights, embeddings: Tensor) -> list[Tensor]:
    return [functional.linear(embeddings, weights["weight"], weights["bias"])]


def head_step(width: int = WIDTH) -> Step:
    weights = {"weight": torch.zeros(len(NAMES), width), "bias": torch.zeros(len(NAMES))}
    return trace(head_logits, weights, (width,), len(NAMES), who="head")


def front_end_step() -> bytes:
    shapes = {"exit1": (WIDTH, 1, 3, 3), "exit2": (WIDTH, WIDTH, 3, 3)}
    parts = [
        Part.model_validate({"exit": name, "tensor": f"{name}.{tensor}", "shape": shape})
        for name, conv in shapes.items()
        for tensor, shape in (("conv", conv), ("head.weight", (len(NAMES), WIDTH)), ("head.bias", (len(NAMES),)))
    ]

    def logits(weights: Weights, images: Tensor) -> list[Tensor]:
        found, x = [], images
        for name, stride in (("exit1", 2), ("exit2", 1)):
            x = functional.conv2d(x, weights[f"{name}.conv"], stride=stride, padding=1).relu()
            found.append(
                functional.linear(x.mean((2, 3)), weights[f"{name}.head.weight"], weights[f"{name}.head.bias"])
            )
        return found

    step = trace(logits, {one.tensor: torch.zeros(one.shape) for one in parts}, (1, 8, 8), len(NAMES), who="tiny")
    return step_to_onnx(step, {PARTS_KEY: parts_text(parts)}, who="tiny")


MakeBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def steps() -> dict[str, bytes]:
    """The training programs, by file name; some are for other heads than these: wider, narrower, of another name."""
    heads = {"head_step.onnx": WIDTH, "wide_step.onnx": WIDTH + 4, "narrow_step.onnx": WIDTH - 4}
    found = {name: step_to_onnx(head_step(width), who="head") for name, width in heads.items()}
    whole = front_end_step()
    headless = whole.replace(b"exit1.head.weight", b"exit1.hood.weight")
    return found | {"front_end_step.onnx": whole, "headless_step.onnx": headless}


@pytest.fixture(scope="session")
def make_bundle(steps: dict[str, bytes]) -> MakeBundle:
    """Writes a device bundle that can learn. changes: fields of the manifest."""

    def make(folder: Path, *, keys: Sequence[SecretKey] = (), budget: float | None = 0.2, **changes: Any) -> Path:
        net = Tiny()
        exits = tuple(Exit(name=name, score="own_mass", threshold=0.0, budget=budget) for name in ("exit1", "exit2"))
        heads = {
            name: Head(
                weight=f"{name}.head.weight", bias=f"{name}.head.bias",
                gate_weight=f"{name}.gate.weight", gate_bias=f"{name}.gate.bias",
            )
            for name in WEIGHTS
        }  # fmt: skip
        training = Training(
            head={"onnxruntime": "head_step.onnx"}, front_end="front_end_step.onnx",
            exit1=heads["exit1"], exit2=heads["exit2"], embedding=WIDTH,
        )  # fmt: skip
        manifest = DeviceManifest(
            harmony_version="0", run="tiny", method="harmony", client=0,
            architecture=Architecture.parse("resnet-w8-d1"), dataset="made-up", image=IMAGE, feature=CUT,
            classes=ClassMap(names=NAMES, own=OWN, tokens=(2, 0, 1, 5, 3, 4)), exits=exits, gate=True,
            fallback=Fallback(), engines={"onnxruntime": {"exit1": "exit1.onnx", "exit2": "exit2.onnx"}},
            parameters=sum(one.numel() for one in net.parameters()), training=training,
        ).model_copy(update=changes)  # fmt: skip
        with sealing(folder) as draft:
            for name in WEIGHTS:
                (draft / f"{name}.onnx").write_bytes(net.onnx(name))
            files = manifest.training.files.values() if manifest.training else ()
            for name in files:
                (draft / name).write_bytes(steps[name])
            write_vectors(draft / VECTORS, net.vectors())
            seal(draft, manifest, keys)
        return folder

    return make


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "phone" / "client-000")


@pytest.fixture(scope="session")
def cloud_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A back end that is a linear layer over the feature."""
    folder = tmp_path_factory.mktemp("cloud") / "cloud"
    weight = np.random.default_rng(2).normal(0, 1, (WIDTH * 16, len(NAMES))).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["feature"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    ports = (_port("feature", ("n", WIDTH, 4, 4)), _port("probabilities", ("n", len(NAMES))))
    program = _model(
        helper.make_graph(nodes, "cloud", ports[:1], ports[1:], [numpy_helper.from_array(weight, "weight")])
    )
    manifest = CloudManifest(
        harmony_version="0", run="tiny", method="harmony", feature=CUT, tokens=len(NAMES), parameters=weight.size
    )
    with sealing(folder) as draft:
        (draft / "back_end.onnx").write_bytes(program)
        write_vectors(draft / VECTORS, {"feature": np.zeros((1, WIDTH, 4, 4), np.float32)})
        seal(draft, manifest)
    return folder


def pictures(label: int, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """(count, 8, 8, 1): stripes whose direction and width say the class, with noise."""
    rows, columns = np.mgrid[:8, :8]
    kinds = (rows % 2, columns % 2, rows // 2 % 2, columns // 2 % 2, (rows + columns) % 4 // 2, np.ones((8, 8)))
    noise = np.random.default_rng((seed, label)).normal(0, 30, (count, 8, 8, 1))
    return np.clip(40 + 160 * kinds[label][..., None] + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def write_photos() -> Callable[..., Path]:
    """Writes DIR/CLASS/N.npy for each label."""

    def write(folder: Path, labels: Sequence[int], count: int = 10) -> Path:
        for label in labels:
            (folder / NAMES[label]).mkdir(parents=True)
            for index, image in enumerate(pictures(label, count)):
                np.save(folder / NAMES[label] / f"{index}.npy", image)
        return folder

    return write


@pytest.fixture(scope="session")
def photos(write_photos: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of four classes, two of which the bundle did not hold."""
    return write_photos(tmp_path_factory.mktemp("photos") / "photos", (1, 2, 3, 4))


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script in a process of its own, in which torch cannot be imported."""
    block = (
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'executorch', 'onnx'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\n"
    )

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", block + script, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return run


@pytest.fixture(scope="session")
def draw() -> Callable[[int, int], NDArray[np.uint8]]:
    """(label, count) → pictures (count, 8, 8, 1) of that class."""
    return pictures


@pytest.fixture(scope="session")
def names() -> tuple[str, ...]:
    return NAMES
