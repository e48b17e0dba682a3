"""Heads trained in ExecuTorch, in the native core, become what they become in ONNX Runtime."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from harmony.core.bundle import VECTORS, open_device_bundle, read_vectors
from harmony.core.errors import ArtifactCorrupt, ContractMismatch, InvalidInput
from harmony.core.sealed import read_sealed
from harmony.core.training import BATCH, EXCLUDED
from harmony.device import verify
from harmony.device.personal import Budget, Plan, Wish, personalize
from harmony.device.personal.native_step import NativeStep
from harmony.device.personal.steps import Form, OnnxStep

CLASSES = 10


def test_both_engines_teach_the_same_without_torch(real: Path, photos: Path, native: Path, tmp_path: Path) -> None:
    found = {}
    script = (
        "import sys\nfrom harmony.cli.main import main\n"
        "try:\n    main()\nfinally:\n    sys.stderr.write(str('torch' in sys.modules))"
    )
    for engine in ("onnx", "executorch"):
        bundle = shutil.copytree(real, tmp_path / engine)
        command = [sys.executable, "-c", script, "personalize", str(bundle), "--data", str(photos), "--engine", engine]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120, check=False)
        assert done.stderr == "False"
        assert json.loads(done.stdout)["adopted"]
        assert open_device_bundle(bundle).classes.own == (1, 4, 5)
        assert verify(bundle, "native").engines[0].max_error < 1e-4  # type: ignore[operator]
        found[engine] = read_vectors(bundle / VECTORS)
    for name, value in found["onnx"].items():
        np.testing.assert_allclose(found["executorch"][name], value, rtol=1e-3, atol=1e-3, err_msg=name)


def test_a_program_for_another_number_of_classes_is_left_out(
    real: Path, photos: Path, native: Path, tmp_path: Path
) -> None:
    shutil.rmtree(photos / "5")
    bundle = shutil.copytree(real, tmp_path / "b")
    outcome = personalize(bundle, str(photos), Wish(heads=Plan(40, 1e-2)), Budget())
    assert outcome.adopted
    assert outcome.dropped == ("executorch",)
    assert set(open_device_bundle(bundle).engines) == {"onnxruntime"}
    assert not (bundle / "front_end.pte").exists()


def test_a_program_that_then_answers_otherwise_is_left_out(
    real: Path, photos: Path, native: Path, tmp_path: Path, reseal: Callable[[Path, bytes], None]
) -> None:
    """Nothing is asked for but equality to the last bit, which two engines do not have."""
    bundle = shutil.copytree(real, tmp_path / "b")
    exact = json.loads((bundle / "manifest.json").read_bytes()) | {"tolerance": {"absolute": 0, "relative": 0}}
    reseal(bundle, json.dumps(exact).encode())
    outcome = personalize(bundle, str(photos), Wish(heads=Plan(40, 1e-2)), Budget())
    assert outcome.adopted
    assert outcome.dropped == ("executorch",)
    assert set(open_device_bundle(bundle).engines) == {"onnxruntime"}
    verify(bundle)


def _steps(real: Path) -> tuple[OnnxStep, NativeStep]:
    manifest = open_device_bundle(real)
    assert manifest.training is not None
    width = manifest.training.embedding
    form = Form(CLASSES * (width + 1), (width,), CLASSES)
    programs = {engine: read_sealed(real, manifest, name) for engine, name in manifest.training.head.items()}
    return OnnxStep(programs["onnxruntime"], form, real), NativeStep(programs["executorch"], form, real)


def _batch(width: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(0)
    target, mask = np.zeros((BATCH, CLASSES), np.float32), np.zeros(CLASSES, np.float32)
    target[np.arange(BATCH), random.integers(0, CLASSES - 1, BATCH)] = 1 / BATCH
    mask[-1] = EXCLUDED
    return target, mask, random.normal(size=(BATCH, width)).astype(np.float32)


def test_step_by_step(real: Path, native: Path) -> None:
    steps, losses, width = _steps(real), {}, 32
    start = np.random.default_rng(1).normal(size=CLASSES * (width + 1)).astype(np.float32)
    for step in steps:
        step.start(start)
        losses[type(step)] = [step.run(1e-2, *_batch(width)) for _ in range(50)]
    np.testing.assert_allclose(losses[NativeStep], losses[OnnxStep], rtol=1e-4)
    np.testing.assert_allclose(steps[1].weights(), steps[0].weights(), rtol=1e-4, atol=1e-5)
    assert losses[NativeStep][-1] < losses[NativeStep][0]


def test_what_a_step_refuses(real: Path, native: Path) -> None:
    manifest = open_device_bundle(real)
    assert manifest.training is not None
    program = read_sealed(real, manifest, manifest.training.head["executorch"])
    form = Form(CLASSES * 33, (32,), CLASSES)
    with pytest.raises(ContractMismatch, match="is not 341 numbers"):
        NativeStep(program, form._replace(weights=341), real)
    with pytest.raises(ArtifactCorrupt, match="is not an ExecuTorch program"):
        NativeStep(b"\0" * 4096, form, real)
    step = NativeStep(program, form, real)
    step.start(np.full(form.weights, np.nan, np.float32))
    with pytest.raises(InvalidInput, match="input 0: is not finite"):
        step.run(1e-2, *_batch(32))
