"""`harmony serve` on nothing but a run folder: its back end is exported first."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from harmony.cli.back_end import servable
from harmony.cloud import torch_program
from harmony.cloud.models import Weights, open_model
from harmony.core.bundle import Exit, open_cloud_bundle
from harmony.core.checkpoint import CheckpointManifest, ClientRecord, save_checkpoint
from harmony.core.config import TrainConfig
from harmony.core.data import load
from harmony.core.errors import ArtifactCorrupt, ArtifactError, ContractMismatch, EngineUnavailable
from harmony.core.models import BackEnd, FrontEnd, feature_spec
from harmony.core.sealed import MANIFEST
from harmony.core.spec import Architecture, ClassMap


def make_run(folder: Path, seed: int) -> Path:
    """A run of one client with random weights."""
    torch.manual_seed(seed)
    data, architecture = load("fashion-mnist-mini"), Architecture.parse("resnet-w8-d1")
    image, names = data.image_spec(), data.class_names
    feature = feature_spec(image, channels=8)
    front_end = FrontEnd(architecture, image, feature, outputs=len(names), gate=None)
    back_end = BackEnd(feature, width=8, tokens=len(names))
    exits = (Exit(name="exit1", score="entropy", threshold=0), Exit(name="exit2", score="entropy", threshold=0))
    classes = ClassMap(names=names, own=(0, 1), tokens=tuple(range(len(names))))
    client = ClientRecord(
        index=0, architecture=architecture, classes=classes, exits=exits, train_images=1, holdout_images=1
    )
    manifest = CheckpointManifest(
        harmony_version="0", run="tiny", method="splitgp", round=1, config=TrainConfig().model_dump(mode="json"),
        dataset=data.name, image=image, feature=feature, back_end_width=8, gate=False, clients=(client,),
    )  # fmt: skip
    tensors = [{k: v.numpy() for k, v in one.state_dict().items()} for one in (back_end, front_end)]
    save_checkpoint(folder / "checkpoint", manifest, tensors[0], {0: tensors[1]})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody has exported yet."""
    return make_run(tmp_path_factory.mktemp("runs") / "run", 0)


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """The same, with its back end exported, be it by a test before."""
    return servable(run)


def test_a_run_is_served_at_once(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harmony.cli.main", "serve", str(run), "--port", "0", "--json", "--no-key"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        with urllib.request.urlopen(f"{said['url']}/v2/models/backend", timeout=20) as reply:  # noqa: S310
            assert json.load(reply)["parameters"]["aliases"] == "latest"
        assert "torch" not in Path(f"/proc/{said['pid']}/maps").read_text()
        process.terminate()
    written = (run / "cloud" / MANIFEST).stat().st_mtime_ns
    assert open_cloud_bundle(run / "cloud").run == "tiny"
    assert servable(run) == run
    assert (run / "cloud" / MANIFEST).stat().st_mtime_ns == written, "it is exported once"
    make_run(tmp_path / "other", 1).joinpath("cloud").symlink_to(run / "cloud")
    with pytest.raises(ArtifactCorrupt, match=r"other/cloud: was exported from another checkpoint"):
        servable(tmp_path / "other")


def test_a_run_that_cannot_be_exported_says_why(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
    tensors = run / "checkpoint" / "back_end.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"could not be exported: ArtifactCorrupt: .*back_end\.safetensors"):
        servable(run)
    assert not (run / "cloud").exists()


def test_pytorch_answers_as_the_onnx_file_does(exported: Path) -> None:
    onnx, plain = (open_model(exported / "cloud", weights=one) for one in (None, Weights(exported / "checkpoint")))
    feature = np.random.default_rng(0).normal(size=(17, *onnx.feature.shape)).astype(np.float32)
    right = onnx.program.run(feature)
    np.testing.assert_allclose(plain.program.run(feature), right, atol=1e-5)


def test_bfloat16_is_near_and_is_what_is_computed_in(exported: Path) -> None:
    if not torch_program.has_bfloat16():
        pytest.skip("this processor has no bfloat16 instructions")
    brief = open_model(exported / "cloud", weights=Weights(exported / "checkpoint", bfloat16=True))
    feature = np.random.default_rng(0).normal(size=(17, *brief.feature.shape)).astype(np.float32)
    right = open_model(exported / "cloud").program.run(feature)
    found = brief.program.run(feature)
    assert found.dtype == np.float32
    assert 1e-5 < np.abs(found - right).max() < 0.03


def test_weights_of_another_checkpoint_are_refused(exported: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", 3)
    with pytest.raises(ContractMismatch, match=r"other/checkpoint: the bundle was exported from another checkpoint"):
        open_model(exported / "cloud", weights=Weights(other / "checkpoint"))


def test_bfloat16_needs_a_processor_that_has_it(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_program, "has_bfloat16", lambda: False)
    with pytest.raises(EngineUnavailable, match="no bfloat16 instructions"):
        open_model(exported / "cloud", weights=Weights(exported / "checkpoint", bfloat16=True))


def test_the_command_serves_a_run_in_pytorch(exported: Path) -> None:
    command = [sys.executable, "-m", "harmony.cli.main", "serve", "--port", "0", "--json", "--no-key"]
    with subprocess.Popen([*command, str(exported), "--engine", "torch"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        with urllib.request.urlopen(f"{said['url']}/v2/models/backend", timeout=20) as reply:  # noqa: S310
            assert json.load(reply)["platform"] == "pytorch_libtorch"
        process.terminate()
    assert process.returncode == 0
    done = subprocess.run(
        [*command, str(exported / "cloud"), "--engine", "torch"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("harmony: ConfigError: --engine: needs the weights of a run")
