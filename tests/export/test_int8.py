"""Bundles with 8 bits: calibrated on training images alone, held against fp32, refused where they say otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from harmony.core.adaptive import SUREST, HeldOut
from harmony.core.bundle import VECTORS, Exit, open_device_bundle, read_vectors
from harmony.core.calibration import thresholds
from harmony.core.checkpoint import client_file, load_tensors, open_checkpoint, save_tensors
from harmony.core.config import make_config
from harmony.core.data import load
from harmony.core.errors import ConfigError, HarmonyError, ParityFailed, RunExists
from harmony.core.inspection import inspect
from harmony.core.partition import partition
from harmony.core.preprocess import Preprocessor
from harmony.core.scores import own_mass
from harmony.core.sealed import MANIFEST, SEAL, seal
from harmony.device import open_engine, verify
from harmony.device.personal import Budget, Plan, Wish, personalize, roll_back
from harmony.export import ExportReport, export_run
from harmony.export.client_images import CALIBRATION, JUDGED, RunImages
from harmony.export.int8_executorch import split_relu6
from harmony.export.networks import front_end

MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def budgeted(run_maker: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, with exits that were calibrated rather than set by hand, and a client 0 that names every class."""
    run = run_maker(tmp_path_factory.mktemp("budgeted"))
    checkpoint = run / "checkpoint"
    manifest = open_checkpoint(checkpoint)
    clients = [one.model_copy(update={"exits": _shares(one.exits)}) for one in manifest.clients]
    path, first = checkpoint / client_file(0), manifest.clients[0]
    tensors = {name: value.copy() for name, value in load_tensors(path).items()}
    with torch.no_grad():
        said = front_end(manifest, first, tensors, path)(torch.from_numpy(RunImages(manifest).of(first).unseen))
    for name, logits in (("exit1", said.logits1), ("exit2", said.logits2)):
        tensors[f"{name}.head.bias"][list(first.classes.own)] -= logits.median(0).values.numpy()
    for name in (MANIFEST, SEAL):
        (checkpoint / name).unlink()
    save_tensors(path, tensors)
    seal(checkpoint, manifest.model_copy(update={"clients": tuple(clients)}))
    return run


def _shares(exits: tuple[Exit, Exit]) -> tuple[Exit, ...]:
    return tuple(one.model_copy(update={"budget": share}) for one, share in zip(exits, (0.5, 0.05), strict=True))


@pytest.fixture(scope="session")
def small(budgeted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    out = tmp_path_factory.mktemp("int8") / "bundles"
    report, _ = _export(budgeted, out)
    return out / "client-000", report


@pytest.fixture
def out(small: tuple[Path, ExportReport], tmp_path: Path) -> Path:
    """Where the cloud's bundle is already, which takes seconds to make."""
    shutil.copytree(small[0].parent / "cloud", tmp_path / "out" / "cloud")
    return tmp_path / "out"


def _export(run: Path, out: Path, **changes: object) -> list[ExportReport]:
    """Random weights agree on no more than they happen to, so by default nothing is asked for."""
    settings = {"clients": (0,), "formats": ("onnx",), "precision": "int8", "min_agreement": 0.0} | changes
    return export_run(run, out, **settings)  # type: ignore[arg-type]


def test_it_is_smaller_says_so_and_verifies(small: tuple[Path, ExportReport], exported: tuple[Path, object]) -> None:
    bundle, report = small
    manifest, plain = open_device_bundle(bundle), open_device_bundle(exported[0] / "client-000")
    assert (manifest.precision, plain.precision) == ("int8", "fp32")
    assert manifest.files["exit2.onnx"].size < 0.6 * plain.files["exit2.onnx"].size
    assert manifest.training is not None
    assert manifest.training == plain.training.model_copy(update={"head": {"onnxruntime": "head_step.onnx"}})  # type: ignore[union-attr]
    (check,) = verify(bundle).engines
    assert check.max_error is not None
    assert 1e-3 < check.max_error == report.engines[0].max_error < manifest.tolerance.absolute
    operators = inspect(bundle).programs[0].operators
    assert operators["Conv"] < operators["DequantizeLinear"]
    assert operators["Gemm"] == 2, "heads are not quantised"


def test_the_agreement_is_that_of_both_exits_on_images_that_nobody_trained_on(
    small: tuple[Path, ExportReport], budgeted: Path
) -> None:
    bundle, report = small
    trained = open_checkpoint(budgeted / "checkpoint")
    images = RunImages(trained).of(trained.clients[0]).unseen
    path = budgeted / "checkpoint" / client_file(0)
    engine, network = (
        open_engine(bundle, open_device_bundle(bundle)),
        front_end(trained, trained.clients[0], load_tensors(path), path),
    )
    agree = []
    for image in images[:, None]:
        hidden, logits1, _ = engine.exit1(image)
        with torch.no_grad():
            eager = network(torch.from_numpy(image))
        pairs = ((logits1, eager.logits1), (engine.exit2(hidden)[1], eager.logits2))
        agree.append([int(found.argmax()) == int(expected.argmax()) for found, expected in pairs])
    assert report.engines[0].agreement == pytest.approx(np.mean(agree, axis=0).min(), abs=1.5 / len(images))
    assert 0.5 < np.mean(agree) < 1


def test_exits_are_calibrated_on_what_the_int8_programs_say(small: tuple[Path, ExportReport], budgeted: Path) -> None:
    bundle, _ = small
    trained, manifest = open_checkpoint(budgeted / "checkpoint"), open_device_bundle(bundle)
    engine, own = open_engine(bundle, manifest), np.asarray(manifest.classes.own)
    first, second = [], []
    for image in RunImages(trained).of(trained.clients[0]).held_out[:, None]:
        hidden, _, gate1 = engine.exit1(image)
        gate2 = engine.exit2(hidden)[2]
        assert gate1 is not None
        assert gate2 is not None
        first.append(own_mass(gate1, own)[0])
        second.append(own_mass(gate2, own)[0])
    score1, score2 = np.asarray(first, np.float32), np.asarray(second, np.float32)
    expected = thresholds(score1, score2, 0.5, 0.05)
    assert [one.threshold for one in manifest.exits] == pytest.approx(expected, abs=1e-5)
    assert [one.threshold for one in manifest.exits] != [one.threshold for one in trained.clients[0].exits]
    known = HeldOut.of(np.where(score1 >= np.float32(expected[0]), np.float32(SUREST), score2))
    assert known is not None
    assert manifest.held_out is not None
    assert manifest.held_out.scores == pytest.approx(known.scores, abs=1e-5)


def test_exits_that_were_set_by_hand_stay(tiny_run: Path, exported: tuple[Path, object], tmp_path: Path) -> None:
    shutil.copytree(exported[0] / "cloud", tmp_path / "out" / "cloud")
    _export(tiny_run, tmp_path / "out")
    assert [one.threshold for one in open_device_bundle(tmp_path / "out/client-000").exits] == [0.1, 0]


def test_a_front_end_that_says_something_else_is_refused_with_the_number(budgeted: Path, out: Path) -> None:
    with pytest.raises(ParityFailed, match=r"client 0: onnxruntime .*on \d+\.\d % of \d+ images .*100 % are asked"):
        _export(budgeted, out, min_agreement=1.0)
    assert not (out / "client-000").exists()


def test_the_same_images_give_the_same_bytes_and_whole_bundles_are_kept(
    small: tuple[Path, ExportReport], budgeted: Path, out: Path
) -> None:
    _export(budgeted, out)
    for one in (out / "client-000").iterdir():
        assert one.read_bytes() == (small[0] / one.name).read_bytes(), one.name
    assert all(one.kept for one in _export(budgeted, out))
    with pytest.raises(RunExists, match="holds int8, not fp32"):
        _export(budgeted, out, precision="fp32", trainable="none")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"precision": "int4"}, "'int4' is no precision .choose fp32 or int8"),
        ({"min_agreement": 99.0}, "--min-agreement: 99.0 is not a share"),
        ({"noise": True}, "--precision int8: .*not on noise"),
        ({"trainable": "front-end"}, "--trainable: a front end of 8 bits cannot learn as a whole .choose head"),
    ],
)
def test_settings_that_cannot_be_meant(
    changes: dict[str, object], problem: str, budgeted: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        _export(budgeted, tmp_path / "out", **changes)


def test_its_heads_learn_and_its_features_stay(small: tuple[Path, ExportReport], tmp_path: Path) -> None:
    bundle = shutil.copytree(small[0], tmp_path / "client-000")
    old, data = open_device_bundle(bundle), load("fashion-mnist-mini")
    x, y = np.concatenate([data.x_train[data.y_train == label][:12] for label in (1, 5, 9)]), np.repeat(range(3), 12)
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y, class_names=["1", "5", "9"])
    engine = open_engine(bundle, old)
    vectors = read_vectors(bundle / VECTORS)
    said = [engine.exit1(image)[0].copy() for image in vectors["image"][:, None]]
    whole = Wish(what="front-end")
    with pytest.raises(ConfigError, match=r"whole front end .*--what head, or .*--precision fp32"):
        personalize(bundle, str(tmp_path / "mine.npz"), whole, Budget())
    outcome = personalize(bundle, str(tmp_path / "mine.npz"), Wish(heads=Plan(20, 1e-2)), Budget())
    new, after = open_device_bundle(bundle), read_vectors(bundle / VECTORS)
    assert outcome.adopted
    assert outcome.after > outcome.before
    assert (new.precision, new.classes.own) == ("int8", (1, 5, 9))
    assert [one.threshold for one in new.exits] != [one.threshold for one in old.exits]
    assert (new.held_out.images if new.held_out else 0) == outcome.holdout_images
    assert old.tolerance.absolute < new.tolerance.absolute <= 1
    np.testing.assert_array_equal(after["hidden"], np.concatenate(said))
    assert after["logits1"].shape == (8, 3)
    assert [check.max_error for check in verify(bundle).engines] == [0]
    assert inspect(bundle).programs[0].operators["DequantizeLinear"] > 2
    roll_back(bundle)
    assert open_device_bundle(bundle) == old


def test_a_client_that_joined_later_has_no_images_here(budgeted: Path) -> None:
    manifest = open_checkpoint(budgeted / "checkpoint")
    late = manifest.clients[0].model_copy(update={"index": 8})
    with pytest.raises(HarmonyError, match="client 8 joined the run later"):
        RunImages(manifest).of(late)


@pytest.mark.parametrize("own_test", [0.0, 0.25])
def test_calibration_images_are_training_images_of_that_client(own_test: float, budgeted: Path) -> None:
    manifest = open_checkpoint(budgeted / "checkpoint")
    settings = manifest.config | {"data": manifest.config["data"] | {"own_test": own_test}}
    manifest = manifest.model_copy(update={"config": settings})
    config, data = make_config(settings, where="here"), load(manifest.dataset)
    labels = np.concatenate([data.y_train, data.y_test])
    images = np.concatenate([data.x_train, data.x_test])
    split = partition(
        labels if own_test else data.y_train, config.partition, classes=10, seed=config.seed,
        holdout=config.data.holdout, test=own_test,
    )[2]  # fmt: skip
    client = manifest.clients[2].model_copy(
        update={"classes": manifest.clients[2].classes.model_copy(update={"own": split.own})}
    )
    found, scaled = RunImages(manifest).of(client), Preprocessor(manifest.image)
    train, rest = (
        {image.tobytes() for image in scaled(images[at])} for at in (split.train, [*split.holdout, *split.test])
    )
    assert 0 < len(found.calibration) <= CALIBRATION
    assert {image.tobytes() for image in found.calibration} <= train
    np.testing.assert_array_equal(found.held_out, scaled(images[split.holdout]))
    assert 0 < len(found.unseen) <= JUDGED
    unseen = {image.tobytes() for image in found.unseen}
    official = {image.tobytes() for image in scaled(data.x_test[np.isin(data.y_test, split.own)])}
    assert unseen <= (rest if own_test else official)


class Clipped(nn.Module):
    """A convolution whose values beyond 0 … 6 do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.clip = nn.Conv2d(1, 4, 3), nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.clip(self.convolution(x))
        return out


def test_a_relu6_is_split_so_that_its_convolution_is_quantised_behind_the_relu() -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 1, 8, 8) * 10
    with torch.no_grad():
        expected = Clipped().eval()
        graph = torch.export.export(expected, (image,), strict=False).module()
        split_relu6(graph)
        assert torch.equal(graph(image), expected(image))
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert [name.split(".")[1] for name in called][-3:-1] == ["conv2d", "relu"]
