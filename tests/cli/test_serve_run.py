"""`harmony serve` on nothing but a run folder: its back end is exported first."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from harmony.cli.back_end import servable
from harmony.core.bundle import Exit, open_cloud_bundle
from harmony.core.checkpoint import CheckpointManifest, ClientRecord, save_checkpoint
from harmony.core.config import TrainConfig
from harmony.core.data import load
from harmony.core.errors import ArtifactCorrupt, ArtifactError
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


def test_a_run_is_served_at_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
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
