"""Training programs: their gradients are PyTorch's, what trains wrongly is refused by name, and devices use them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from harmony.core.bundle import DeviceManifest, open_device_bundle
from harmony.core.data import load
from harmony.core.errors import ConfigError, EngineError, ParityFailed, RunExists
from harmony.core.models import FrontEnd, feature_spec
from harmony.core.spec import Architecture, ImageSpec
from harmony.core.training import BATCH
from harmony.device import verify
from harmony.device.personal import Budget, Plan, Wish, personalize
from harmony.export import ExportReport, export_run
from harmony.export.training_check import check_step
from harmony.export.training_executorch import run_step, step_to_executorch
from harmony.export.training_onnx import run_onnx_step, step_to_onnx
from harmony.export.training_step import Logits, Step, Weights, trace

Exported = tuple[Path, list[ExportReport]]
IMAGE = ImageSpec(height=16, width=16, channels=1, mean=(0,), std=(1,))
CLASSES = 4


def _of_module(network: nn.Module) -> tuple[Logits, Weights]:
    weights = {name: one.detach() for name, one in network.named_parameters()}

    def logits(weights: Weights, inputs: Tensor) -> Sequence[Tensor]:
        out = functional_call(network, dict(weights), (inputs,))
        return [out] if isinstance(out, Tensor) else [out.logits1, out.logits2]

    return logits, weights


def _step(network: nn.Module, sample: Sequence[int]) -> tuple[Logits, Weights, Step]:
    logits, weights = _of_module(network)
    return logits, weights, trace(logits, weights, sample, CLASSES, who="net")


@pytest.mark.parametrize("text", ["resnet-w8-d1", "mobilenet-w8-d1", "patch-w8-d1"])
def test_every_familys_step_is_pytorchs(text: str) -> None:
    network = FrontEnd(Architecture.parse(text), IMAGE, feature_spec(IMAGE, channels=8), outputs=CLASSES, gate=None)
    logits, weights, step = _step(network, (1, 16, 16))
    program = step_to_onnx(step, who=text)
    worst = check_step(lambda inputs: run_onnx_step(program, inputs), logits, weights, step, who=text)
    assert worst < 1e-4
    assert len(program) < 100_000


def test_a_head_in_executorch_is_pytorchs() -> None:
    logits, weights, step = _step(nn.Linear(8, CLASSES), (8,))
    program = step_to_executorch(step)
    assert check_step(lambda inputs: run_step(program, inputs), logits, weights, step, who="head") < 1e-4


def test_a_wrong_gradient_is_found() -> None:
    """A network whose gradient is not that of the program: one weight counts twice."""
    logits, weights, step = _step(nn.Linear(8, CLASSES), (8,))
    program = step_to_onnx(step, who="head")

    def other(weights: Weights, inputs: Tensor) -> list[Tensor]:
        return [functional.linear(inputs, weights["weight"], 2 * weights["bias"])]

    with pytest.raises(ParityFailed, match="gradient of"):
        check_step(lambda inputs: run_onnx_step(program, inputs), other, weights, step, who="head")
    assert check_step(lambda inputs: run_onnx_step(program, inputs), logits, weights, step, who="head") < 1e-4


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.MaxPool2d(2), "max_pool2d"),
        (nn.AvgPool2d(2), "avg_pool2d"),
        (nn.BatchNorm2d(4), "batch_norm"),
        (nn.Dropout(0.5), r"bernoulli|dropout"),
    ],
)
def test_what_trains_wrongly_is_refused_by_name(layer: nn.Module, named: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Flatten(), nn.LazyLinear(CLASSES))
    network(torch.zeros(2, 1, 8, 8))  # the lazy layer finds its size
    with pytest.raises(EngineError, match=named):
        _step(network, (1, 8, 8))


@pytest.mark.parametrize(
    ("layer", "words"),
    [(nn.Conv2d(1, 4, 3, dilation=2), "dilated"), (nn.GELU(), "gelu"), (nn.ConvTranspose2d(1, 4, 3), "transposed")],
)
def test_what_has_no_onnx_form_is_refused_by_name(layer: nn.Module, words: str) -> None:
    network = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(CLASSES))
    network(torch.zeros(2, 1, 8, 8))
    _, _, step = _step(network, (1, 8, 8))
    with pytest.raises(EngineError, match=words):
        step_to_onnx(step, who="net")


def test_strided_and_even_sized_convolutions() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=3, groups=4), nn.ReLU(),
        nn.Conv2d(4, 6, (1, 3), padding=(0, 1)), nn.Flatten(), nn.LazyLinear(CLASSES),
    )  # fmt: skip
    network(torch.zeros(2, 1, 15, 15))
    logits, weights, step = _step(network, (1, 15, 15))
    program = step_to_onnx(step, who="net")
    assert check_step(lambda inputs: run_onnx_step(program, inputs), logits, weights, step, who="net") < 1e-4


def test_bundles_hold_heads_that_learn_by_default(exported: Exported) -> None:
    manifest = open_device_bundle(exported[0] / "client-000")
    assert manifest.training is not None
    assert manifest.training.head == {"onnxruntime": "head_step.onnx", "executorch": "head_step.pte"}
    assert manifest.training.front_end is None
    learning = sum(manifest.files[name].size for name in manifest.training.files.values())
    assert learning < 0.05 * sum(one.size for one in manifest.files.values())


def _photos(folder: Path, manifest: DeviceManifest, labels: Sequence[int], count: int = 12) -> Path:
    data = load(manifest.dataset)
    for label in labels:
        (folder / str(label)).mkdir(parents=True)
        for index, image in enumerate(data.x_train[data.y_train == label][:count]):
            Image.fromarray(image[:, :, 0]).save(folder / str(label) / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def trainable(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Client 0 for ONNX Runtime, with its front end's training program."""
    out = tmp_path_factory.mktemp("trainable")
    export_run(tiny_run, out, clients=(0,), formats=("onnx",), trainable="front-end")
    return out


@pytest.mark.parametrize("what", ["head", "front-end"])
def test_an_exported_bundle_learns(trainable: Path, tmp_path: Path, what: str) -> None:
    bundle = shutil.copytree(trainable / "client-000", tmp_path / "client-000")
    photos = _photos(tmp_path / "photos", open_device_bundle(bundle), (1, 5, 9))
    wish = Wish(
        what="head" if what == "head" else "front-end", heads=Plan(20, 1e-2), front_end=Plan(4, 3e-3),
        back_end=trainable / "cloud" if what == "front-end" else None,
    )  # fmt: skip
    outcome = personalize(bundle, str(photos), wish, Budget())
    assert outcome.adopted
    assert outcome.after > outcome.before
    assert open_device_bundle(bundle).classes.own == (1, 5, 9)
    assert outcome.steps == (2 * 20 if what == "head" else 4) * -(-outcome.train_images // BATCH)
    verify(bundle)


def test_an_export_keeps_off_bundles_that_were_made_personal(tiny_run: Path, trainable: Path, tmp_path: Path) -> None:
    out = shutil.copytree(trainable, tmp_path / "out")
    again: Callable[[], list[ExportReport]] = lambda: export_run(  # noqa: E731
        tiny_run, out, clients=(0,), formats=("onnx",), trainable="front-end"
    )
    assert [one.kept for one in again()] == [True, True]
    with pytest.raises(RunExists, match="--trainable head"):
        export_run(tiny_run, out, clients=(0,), formats=("onnx",))
    photos = _photos(tmp_path / "photos", open_device_bundle(out / "client-000"), (1, 5, 9))
    assert personalize(out / "client-000", str(photos), Wish(heads=Plan(20, 1e-2)), Budget()).adopted
    with pytest.raises(RunExists, match="made personal"):
        again()


@pytest.mark.parametrize(
    ("formats", "trainable", "words"),
    [(("executorch",), "front-end", "add onnx"), (("onnx",), "everything", "'everything' is nothing to train")],
)
def test_what_cannot_be_made_trainable(
    tiny_run: Path, tmp_path: Path, formats: tuple[str, ...], trainable: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        export_run(tiny_run, tmp_path / "o", formats=formats, trainable=trainable)  # type: ignore[arg-type]


def test_vectors_of_noise_do_not_matter_to_a_step() -> None:
    """A sample whose targets are zero changes nothing, whatever it holds: that is how small batches are filled up."""
    _, weights, step = _step(nn.Linear(8, CLASSES), (8,))
    program = step_to_onnx(step, who="head")
    inputs = list(step.inputs)
    inputs[4], inputs[6] = torch.zeros(BATCH, CLASSES), torch.randn(BATCH, 8)
    inputs[4][:3, 1] = 1 / 3
    one = run_onnx_step(program, inputs)
    inputs[6] = inputs[6].clone()
    inputs[6][3:] = 7
    other = run_onnx_step(program, inputs)
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)
    assert sum(one.numel() for one in weights.values()) == len(other["gradient"])
