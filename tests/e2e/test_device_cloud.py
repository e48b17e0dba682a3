"""Checkpoint, export, service and device together, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import save_file

from harmony.core.adaptive import SUREST, HeldOut
from harmony.core.bundle import Exit, open_device_bundle
from harmony.core.checkpoint import CheckpointManifest, ClientRecord, open_checkpoint, save_checkpoint
from harmony.core.config import TrainConfig
from harmony.core.data import Dataset, load
from harmony.core.mix import test_mix as mix_of
from harmony.core.models import BackEnd, FrontEnd, feature_spec
from harmony.core.preprocess import Preprocessor
from harmony.core.sealed import MANIFEST, SEAL, seal
from harmony.core.spec import Architecture, ClassMap
from harmony.device import Device, open_engine, verify
from harmony.export import export_run
from harmony.train import evaluate

KEY = "a-key-for-this-test"


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load("fashion-mnist-mini")


@pytest.fixture(scope="module")
def bundles(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One client and the cloud of a network with random weights. Exit 2 lets about half of the images pass on."""
    torch.manual_seed(0)
    folder, image, names = tmp_path_factory.mktemp("run"), data.image_spec(), data.class_names
    feature, architecture = feature_spec(image, channels=8), Architecture.parse("mobilenet-w8-d1")
    networks = FrontEnd(architecture, image, feature, outputs=10, gate=10), BackEnd(feature, width=8, tokens=10)
    for network in networks:
        for one in network.parameters():
            one.data += 0.3 * torch.randn_like(one)
    with torch.no_grad():
        gate = networks[0].eval()(torch.from_numpy(Preprocessor(image)(data.x_test[:100]))).gate2.numpy()
    own = (1, 4, 7)
    mass = np.exp(gate)[:, own].sum(1) / np.exp(gate).sum(1)
    threshold = float(np.median(np.log(mass / (1 - mass))))
    record = ClientRecord(
        index=0,
        architecture=architecture,
        classes=ClassMap(names=names, own=own, tokens=(5, 3, 1, 0, 2, 4, 9, 8, 7, 6)),
        exits=(
            Exit(name="exit1", score="own_mass", threshold=1e9),
            Exit(name="exit2", score="own_mass", threshold=threshold),
        ),
        train_images=1,
        holdout_images=1,
    )
    manifest = CheckpointManifest(
        harmony_version="0", run="e2e", method="harmony", round=1, config=TrainConfig().model_dump(mode="json"),
        dataset=data.name, image=image, feature=feature, back_end_width=8, gate=True, clients=(record,),
    )  # fmt: skip
    front, back = ({name: value.numpy() for name, value in one.state_dict().items()} for one in networks)
    save_checkpoint(folder / "checkpoint", manifest, back, {0: front})
    export_run(folder, folder / "bundles")
    return folder / "bundles"


@pytest.fixture(scope="module")
def service(bundles: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "harmony.cli.main", "serve", str(bundles / "cloud"), "--port", "0", "--json"]
    environment = os.environ | {"HARMONY_KEY": KEY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()
            assert process.wait(30) == 0


def _stream(bundles: Path, images: Path, *options: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    out = images.with_name("report.json")
    command = [sys.executable, "-m", "harmony.device.stream", str(bundles / "client-000"), "--images", str(images)]
    return subprocess.run(
        [*command, "--out", str(out), *options],
        env=os.environ | {"DEVICE_KEY": key}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("engine", ["onnxruntime", "executorch"])
def test_a_device_process_and_a_service_process_answer_a_stream(
    engine: str, bundles: Path, service: str, data: Dataset, tmp_path: Path
) -> None:
    images = data.x_test[:100].copy()
    save_file({"images": images}, tmp_path / "images.safetensors")
    options = ("--server", service, "--key-env", "DEVICE_KEY", "--engine", engine, "--deadline", "20")
    done = _stream(bundles, tmp_path / "images.safetensors", *options)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "report.json").read_text())
    samples = report["samples"]
    assert report["torch_loaded"] is (engine == "executorch")
    assert not any(samples["degraded"])
    assert 20 < samples["exit"].count("cloud") < 80
    expected = _expected(bundles, data)
    agree = [label == right for label, right in zip(samples["label"], expected, strict=True)]
    assert sum(agree) >= 97  # the wire's int8 may turn a near tie in the back end
    assert set(samples["label"]) - {1, 4, 7}, "classes that the device does not hold must be among the answers"


def _expected(bundles: Path, data: Dataset) -> list[int]:
    """The device alone, and the back end on its features without any wire."""
    manifest = open_device_bundle(bundles / "client-000")
    device = Device.open(bundles / "client-000")
    exit1, exit2, back = (
        onnxruntime.InferenceSession(bundles / name)
        for name in ("client-000/exit1.onnx", "client-000/exit2.onnx", "cloud/back_end.onnx")
    )
    labels = []
    for image in data.x_test[:100]:
        answer = device.answer(image)
        if answer.would_offload:
            (hidden,) = exit1.run(["hidden"], {"image": Preprocessor(manifest.image)(image[None])})
            (feature,) = exit2.run(["feature"], {"hidden": hidden})
            (row,) = back.run(None, {"feature": feature})
            labels.append(int(manifest.classes.label_of_token[row[0].argmax()]))
        else:
            labels.append(answer.label)
    return labels


def test_the_python_of_the_readme_runs(bundles: Path, service: str, data: Dataset, tmp_path: Path) -> None:
    """As it stands there, but for the image, the folder, the address and the key."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    places = {"bundles/client-000": str(bundles / "client-000"), "http://127.0.0.1:8080": service, "KEY": KEY}
    for shown, here in places.items():
        assert f'"{shown}"' in block
        block = block.replace(f'"{shown}"', repr(here))
    device = Device.open(bundles / "client-000")
    for exit_ in ("exit2", "cloud"):
        image = next(one for one in data.x_test if device.answer(one).would_offload == (exit_ == "cloud"))
        np.save(tmp_path / "image.npy", image)
        program = f"import numpy; image = numpy.load({str(tmp_path / 'image.npy')!r})\n{block}"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        name, *rest = done.stdout.rsplit(maxsplit=2)
        assert (name in data.class_names, rest, done.stderr) == (True, [exit_, "False"], "")


def test_a_wrong_key_is_named_before_the_stream_starts(
    bundles: Path, service: str, data: Dataset, tmp_path: Path
) -> None:
    save_file({"images": data.x_test[:2].copy()}, tmp_path / "images.safetensors")
    options = ("--server", service, "--key-env", "DEVICE_KEY")
    done = _stream(bundles, tmp_path / "images.safetensors", *options, key="another")
    assert done.returncode == 2
    assert "CloudRefused" in done.stderr
    assert "401" in done.stderr
    assert "another" not in done.stderr


def test_both_engines_give_the_same_answers(bundles: Path, data: Dataset) -> None:
    one, other = (Device.open(bundles / "client-000", engine=name) for name in ("onnxruntime", "executorch"))
    for image in data.x_test[:50]:
        first, second = one.answer(image), other.answer(image)
        assert first.scores == pytest.approx(second.scores, abs=1e-3)
        assert first.probability == pytest.approx(second.probability, abs=1e-4)
        assert first.label == second.label


def test_evaluation_says_what_a_device_that_follows_the_stream_sends(
    bundles: Path, data: Dataset, tmp_path: Path
) -> None:
    """Held-out scores as of a device that knows its classes better than random weights do: some images look foreign."""
    bundle, checkpoint = bundles / "client-000", tmp_path / "checkpoint"
    manifest = open_device_bundle(bundle)
    mixes = [(rho, mix_of(data.y_test, manifest.classes.own, rho, 0)) for rho in (0.0, 1.0)]
    plain = Device.open(bundle)
    passed = [plain.answer(data.x_test[at]).scores for at in mixes[0][1].indices]
    scores = np.array([one[1] if len(one) > 1 else SUREST for one in passed], np.float32)
    held_out = HeldOut.of(np.sort(scores)[len(scores) // 4 :])
    shutil.copytree(bundles.parent / "checkpoint", checkpoint)
    trained = open_checkpoint(checkpoint)
    for name in (MANIFEST, SEAL):
        (checkpoint / name).unlink()
    clients = (trained.clients[0].model_copy(update={"held_out": held_out}),)
    seal(checkpoint, trained.model_copy(update={"clients": clients}))
    (found,) = evaluate(checkpoint, data, rhos=(0.0, 1.0)).clients
    following = manifest.model_copy(update={"held_out": held_out})
    for (_, mix), said in zip(mixes, found.curve, strict=True):
        device = Device(following, open_engine(bundle, following))
        sent = [device.answer(data.x_test[at]).would_offload for at in mix.indices]
        assert said.offload_adaptive == pytest.approx(np.mean(sent), abs=1e-12)
        assert 0 < sum(sent) < len(sent)


def test_verify_runs_every_engine_and_the_cloud(bundles: Path) -> None:
    checks = {check.engine: check.max_error for check in verify(bundles / "client-000").engines}
    assert set(checks) == {"onnxruntime", "executorch"}
    assert all(error is not None and 0 < error < 1e-4 for error in checks.values())
    report = verify(bundles / "cloud")
    assert (report.kind, report.vectors) == ("harmony-cloud-bundle", 8)


def test_infer_by_command_needs_no_torch(bundles: Path, data: Dataset, service: str, tmp_path: Path) -> None:
    """The same path as the stream, through the command; rich may load, torch may not."""
    np.save(tmp_path / "image.npy", data.x_test[0])
    program = (
        "import sys; from harmony.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'executorch' not in sys.modules"
    )
    arguments = ["infer", str(bundles / "client-000"), str(tmp_path / "image.npy"), "--server", service, "--json"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"HARMONY_KEY": KEY}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (answer,) = json.loads(done.stdout)
    assert answer["exit"] in ("exit2", "cloud")
    assert answer["degraded"] is False
