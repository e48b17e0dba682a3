"""A bundle of 8 bits runs in all three engines, and the native core takes the exits of the Python path there, too."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from harmony.core.bundle import open_device_bundle
from harmony.core.sealed import read_sealed
from harmony.device import open_engine, verify
from harmony.device.decision import Loop
from harmony.device.native_engine import NativeEngine
from harmony.device.personal import Budget, Plan, Wish, personalize
from harmony.export import ExportReport, export_run

Images = NDArray[np.uint8]
Exported = tuple[Path, ExportReport]


@pytest.fixture(scope="module")
def int8(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The front end of `real` with 8 bits. Random weights: nothing is asked of its agreement."""
    out = tmp_path_factory.mktemp("int8") / "bundles"
    report, _ = export_run(real.parent.parent, out, precision="int8", min_agreement=0)
    return report.bundle, report


def test_every_engine_verifies_it(native: Path, int8: Exported, real: Path) -> None:
    bundle, report = int8
    manifest, plain = open_device_bundle(bundle), open_device_bundle(real)
    assert manifest.precision == "int8"
    assert manifest.files["front_end.pte"].size < 0.8 * plain.files["front_end.pte"].size
    assert [one.engine for one in report.engines] == ["onnxruntime", "executorch"]
    assert [one.delegated for one in report.engines] == [None, 1.0]
    for engine in ("onnxruntime", "executorch", "native"):
        (check,) = verify(bundle, engine).engines
        assert check.max_error is not None
        assert 1e-3 < check.max_error < manifest.tolerance.absolute


def test_its_heads_learn_in_every_engine(native: Path, int8: Exported, photos: Path, tmp_path: Path) -> None:
    bundle, old = shutil.copytree(int8[0], tmp_path / "b"), open_device_bundle(int8[0])
    wish = Wish(engine="executorch", heads=Plan(40, 1e-2))
    outcome = personalize(bundle, str(photos), wish, Budget())
    assert outcome.adopted
    assert outcome.dropped == ()
    assert old.tolerance.absolute <= open_device_bundle(bundle).tolerance.absolute <= 1
    assert [one.max_error for one in verify(bundle, "onnxruntime").engines] == [0]
    verify(bundle, "native")


def test_most_answers_are_those_of_fp32(native: Path, int8: Exported, real: Path, images: Images) -> None:
    plain, manifest = open_device_bundle(real), open_device_bundle(int8[0])
    loops = [Loop(plain, open_engine(real, plain)), Loop(plain, open_engine(int8[0], manifest))]
    loops.append(Loop(plain, NativeEngine(read_sealed(int8[0], manifest, "front_end.pte"), manifest, int8[0])))
    answers = [[loop.decide(image).label for loop in loops] for image in images[:200]]
    first, *others = np.array(answers).T
    assert all((one == first).mean() > 0.85 for one in others)


def test_the_native_core_takes_the_same_exits(
    native: Path,
    int8: Exported,
    images: Images,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    bundle, manifest = int8[0], open_device_bundle(int8[0])
    program = read_sealed(bundle, manifest, "front_end.pte")
    core = NativeEngine(program, manifest, bundle)
    python = Loop(manifest, NativeEngine(program, manifest, bundle))
    np.save(tmp_path / "images.npy", images)
    done = run(bundle, tmp_path / "images.npy")
    assert (done.returncode, done.stderr) == (0, "")
    exits = set()
    for image, line in zip(images, done.stdout.splitlines(), strict=True):
        found, expected, row = core.decide(image), python.decide(image), json.loads(line)
        assert (found.exit, found.label, found.scores) == (expected.exit, expected.label, expected.scores)
        assert (row["exit"], row["label"], row["would_offload"]) == (found.exit, found.label, found.feature is not None)
        exits.add((found.exit, found.feature is None))
    assert len(exits) == 3
