"""Real counts, where the environment is: exact, of live nets, and different where the work is."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from harmony.bench.arm.calibration import NETS
from harmony.bench.arm.cores import CORES
from harmony.bench.arm.counting import _hot, count_bundles
from harmony.bench.arm.emulation import run_emulated
from harmony.bench.arm.environment import open_environment
from harmony.bench.arm.results import NetsResult
from harmony.bench.result_files import read_result
from harmony.core.config import make_config
from harmony.core.data import load
from harmony.core.errors import ConfigError, EngineError, EngineUnavailable
from harmony.device.native_build import PROGRAM, ensure_native
from harmony.export import export_run
from harmony.train import train

SMALL = {"architectures": ["resnet-w8-d1", "mobilenet-w8-d1"], "partition": {"clients": 2}, "rounds": 1, "steps": 2}


@pytest.fixture(scope="module")
def bundles(arm_cache: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trained devices of different architectures, for both engines."""
    assert arm_cache, "nothing is trained where there is nothing to count with"
    folder = tmp_path_factory.mktemp("arm")
    train(make_config(SMALL), folder / "run")
    export_run(folder / "run", folder / "bundles", formats=("onnx", "executorch"), trainable="none")
    return sorted((folder / "bundles").glob("client-*"))


def test_without_the_environment_it_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="harmony bench setup-arm"):
        count_bundles([tmp_path], core="a75")


def test_what_cannot_be_meant_is_said_before_anything_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'nokia' is no known device"):
        count_bundles([tmp_path], device="nokia")
    with pytest.raises(ConfigError, match="is calibrated for XNNPACK, not for onnxruntime"):
        count_bundles([tmp_path], device="pixel", engine="onnxruntime")
    with pytest.raises(ConfigError, match="name a core or a device"):
        count_bundles([tmp_path])


def test_equal_work_may_differ_by_its_scores_and_by_no_more() -> None:
    assert _hot((1034370, 1034399)) == 1034399
    with pytest.raises(EngineError, match="counts of equal work differ: 1000000, 1002000"):
        _hot((1000000, 1002000))


@pytest.mark.usefixtures("arm")
def test_two_runs_count_the_same(bundles: list[Path]) -> None:
    for engine in ("executorch", "onnxruntime"):
        one, other = (count_bundles(bundles[:1], core="a75", engine=engine).bundles for _ in range(2))
        assert one == other


@pytest.mark.usefixtures("arm")
def test_counts_are_of_the_work_that_is_done(bundles: list[Path]) -> None:
    result = count_bundles(bundles, device="pixel-3a")
    for bundle in result.bundles:
        exit1, exit2, cloud = bundle.paths
        assert 0 < exit1.instructions < exit2.instructions < cloud.instructions
        for path in bundle.paths:
            assert 0.5 * path.instructions < path.engine < path.instructions < path.first < bundle.opening
            assert path.predicted is not None
            assert path.predicted.low <= path.predicted.ms <= path.predicted.high
    assert len({bundle.paths[0].instructions for bundle in result.bundles}) == 2
    (in_order,) = count_bundles(bundles[:1], core="a53").bundles
    assert in_order.paths[0].instructions > result.bundles[0].paths[0].instructions, "other kernels"
    assert in_order.paths[0].predicted is None


@pytest.mark.usefixtures("arm")
def test_a_bundle_without_files_for_the_engine(bundles: list[Path], tmp_path: Path) -> None:
    export_run(bundles[0].parents[1] / "run", tmp_path / "onnx", clients=[0], formats=("onnx",), trainable="none")
    with pytest.raises(EngineUnavailable, match=r"has no files for executorch \(harmony export --format executorch\)"):
        count_bundles([tmp_path / "onnx" / "client-000"], core="a75")


@pytest.mark.usefixtures("arm")
def test_it_was_calibrated_in_an_environment_like_this() -> None:
    versions = read_result(NETS, NetsResult).versions
    assert open_environment()[1].versions["executorch"] == versions["executorch"]


@pytest.mark.usefixtures("arm")
def test_the_device_decides_on_arm_as_it_does_here(bundles: list[Path]) -> None:
    folder, environment = open_environment()
    images = load("fashion-mnist-mini").x_test[:40]
    fields = ("image", "exit", "label", "would_offload")
    for bundle in bundles:
        with tempfile.TemporaryDirectory() as work:
            np.save(Path(work) / "images.npy", images)
            command = [PROGRAM, str(bundle), "images.npy"]
            there = run_emulated(folder, environment, CORES["a75"], command, Path(work), counted=False).output
            here = subprocess.run(
                [ensure_native() / PROGRAM, *command[1:]], cwd=work, capture_output=True, text=True, check=True
            ).stdout
        rows = [[json.loads(line) for line in text.splitlines()] for text in (there, here)]
        assert len(rows[0]) == len(images)
        assert [[row[name] for name in fields] for row in rows[0]] == [
            [row[name] for name in fields] for row in rows[1]
        ]
