"""A tiny federation, trained by nobody: three clients of two shapes, with weights that let every input through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harmony.core.bundle import Exit
from harmony.core.checkpoint import CheckpointManifest, ClientRecord, save_checkpoint
from harmony.core.config import TrainConfig
from harmony.core.data import load
from harmony.core.models import BackEnd, FrontEnd, feature_spec
from harmony.core.scores import ScoreName
from harmony.core.spec import Architecture, ClassMap
from harmony.export import ExportReport, export_run

ARCHITECTURES = ("resnet-w8-d1", "resnet-w8-d1", "mobilenet-w8-d1")
MakeRun = Callable[..., Path]


def make_run(folder: Path, *, gate: bool = True, seed: int = 0, **changes: Any) -> Path:
    """Write folder/checkpoint; `changes` replace fields of its manifest."""
    torch.manual_seed(seed)
    data = load("fashion-mnist-mini")
    image, names = data.image_spec(), data.class_names
    feature = feature_spec(image, channels=8)
    records, tensors = [], {}
    score: ScoreName = "own_mass" if gate else "entropy"
    for index, text in enumerate(ARCHITECTURES):
        architecture = Architecture.parse(text)
        front_end = FrontEnd(architecture, image, feature, outputs=len(names), gate=len(names) if gate else None)
        tensors[index] = _lively(front_end)
        own = (index, index + 3, index + 6)
        tokens = tuple(int(token) for token in torch.randperm(len(names)))
        records.append(
            ClientRecord(
                index=index,
                architecture=architecture,
                classes=ClassMap(names=names, own=own, tokens=tokens),
                exits=(Exit(name="exit1", score=score, threshold=0.1), Exit(name="exit2", score=score, threshold=0)),
                train_images=1,
                holdout_images=1,
            )
        )
    manifest = CheckpointManifest(
        harmony_version="0", run="tiny", method="harmony", round=1, config=TrainConfig().model_dump(mode="json"),
        dataset=data.name, image=image, feature=feature, back_end_width=8, gate=gate, clients=tuple(records),
    ).model_copy(update=changes)  # fmt: skip
    save_checkpoint(folder / "checkpoint", manifest, _lively(BackEnd(feature, width=8, tokens=len(names))), tensors)
    return folder


def _lively(network: torch.nn.Module) -> dict[str, Any]:
    """Weights with noise in every one of them, so that no two are equal and every input makes a difference."""
    for one in network.parameters():
        one.data += 0.2 * torch.randn_like(one)
    return {name: value.numpy() for name, value in network.state_dict().items()}


@pytest.fixture(scope="session")
def run_maker() -> MakeRun:
    return make_run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ExportReport]]:
    """Clients 0 and 1, which share an architecture, in both formats."""
    out = tmp_path_factory.mktemp("out") / "bundles"
    return out, export_run(tiny_run, out, clients=(0, 1))
