"""What a bench refuses before it measures anything, and what a replay says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmony.bench.bare import BareFrontEnd
from harmony.bench.plan import make_plan
from harmony.bench.replay import replay
from harmony.bench.results import BenchSettings
from harmony.core.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    ConfigError,
    ContractMismatch,
    DataMissing,
    EngineUnavailable,
)


def settings(federation: Any, **changed: Any) -> BenchSettings:
    fields = {"bundles": federation.devices, "cloud": federation.cloud, "rhos": (0.0, 1.0), "limit": 200}
    return BenchSettings(**(fields | changed))


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"bundles": (Path("nowhere"),)}, ArtifactMissing, "nowhere: no harmony-device-bundle here"),
        ({"cloud": Path("nowhere")}, ArtifactMissing, "nowhere: no harmony-cloud-bundle here"),
        ({"links": ("5g",)}, ConfigError, "'5g' is no link"),
        ({"engines": ("executorch",)}, EngineUnavailable, "no files for executorch .use --engine onnxruntime"),
        ({"data": "no-such-set"}, DataMissing, "no-such-set"),
    ],
)
def test_refused(federation: Any, changed: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make_plan(settings(federation, **changed))


def test_a_cloud_bundle_is_no_device(federation: Any) -> None:
    with pytest.raises(ArtifactCorrupt, match="is a 'harmony-cloud-bundle', not a 'harmony-device-bundle'"):
        make_plan(settings(federation, bundles=(federation.cloud,)))


def test_an_edited_bundle(federation: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(federation.devices[0], tmp_path / "copy")
    program = bytearray((copy / "exit2.onnx").read_bytes())
    program[-1] ^= 1
    (copy / "exit2.onnx").write_bytes(program)
    with pytest.raises(ArtifactCorrupt, match=r"exit2\.onnx: was changed"):
        make_plan(settings(federation, bundles=(copy,)))


def test_images_of_another_kind(federation: Any, tmp_path: Path) -> None:
    def dataset(side: int, classes: int) -> str:
        images, labels = np.zeros((classes, side, side), np.uint8), np.arange(classes)
        path = tmp_path / f"{side}-{classes}.npz"
        np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
        return str(path)

    with pytest.raises(ContractMismatch, match="takes 28x28x1 uint8 images, '8-10' has 8x8x1"):
        make_plan(settings(federation, data=dataset(8, 10)))
    with pytest.raises(ContractMismatch, match="its classes are not those of '28-4'"):
        make_plan(settings(federation, data=dataset(28, 4)))


def test_a_back_end_of_another_run(
    federation: Any, tmp_path: Path, resealed: Callable[[Path, Path, dict[str, Any]], Path]
) -> None:
    other = resealed(federation.cloud, tmp_path / "other", {"run": "other"})
    with pytest.raises(ContractMismatch, match="is not of the same checkpoint"):
        make_plan(settings(federation, cloud=other))
    cut = resealed(federation.cloud, tmp_path / "cut", {"feature": {"channels": 3, "height": 7, "width": 7}})
    with pytest.raises(ContractMismatch, match=r"the cut contract differs: .*2x7x7.*3x7x7"):
        make_plan(settings(federation, cloud=cut))


def test_two_bundles_of_one_name_keep_apart(federation: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(federation.devices[0], tmp_path / "client-000")
    plan = make_plan(settings(federation, bundles=(federation.devices[0], copy)))
    folders = [federation.devices[0].parent.name, tmp_path.name]
    assert [target.name for target in plan.targets] == [f"{folder}/client-000" for folder in folders]


def test_replay_knows_both_sides(federation: Any) -> None:
    plan = make_plan(settings(federation))
    assert plan.cloud is not None
    for target in plan.targets:
        found = replay(target, federation.cloud, plan.cloud)
        inside, truth = target.stream.is_id, target.truth
        assert set(found.exit2) <= set(target.manifest.classes.own)
        assert np.mean((found.exit2 == truth)[inside]) > 0.75
        assert np.mean(found.exit2[~inside] == truth[~inside]) == 0
        assert np.mean((found.server == truth)[~inside]) > 0.5


def test_the_bare_front_end_runs_both_segments(federation: Any) -> None:
    target = make_plan(settings(federation)).targets[0]
    image = np.random.default_rng(0).standard_normal((1, 1, 28, 28)).astype(np.float32)
    feature, logits = BareFrontEnd(target.folder, target.manifest).exit2(image)
    pooled = image.reshape(7, 4, 7, 4).mean((1, 3))
    np.testing.assert_allclose(feature[0], np.stack([pooled, pooled]), atol=1e-6)
    assert logits.shape == (1, 3)
