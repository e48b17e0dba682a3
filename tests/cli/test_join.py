"""`harmony join`, as a user types it: train, join, evaluate and export what came of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from harmony.cli.main import main
from harmony.core.bundle import open_device_bundle

SMALL = [
    *("--clients", "2", "--rounds", "1", "--batch", "4", "--arch", "resnet-w8-d1", "--arch", "mobilenet-w8-d1"),
    *("--set", "steps=1", "--set", "back_end_width=8", "--threads", "1"),
    *("--set", "harmony.personalize='heads'", "--set", "harmony.personalize_epochs=0"),
]
FEW = ["--steps", "1", "--images", "30"]


@pytest.fixture
def harmony(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["harmony", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_client_joins_and_its_checkpoint_goes_on_like_any(harmony, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert harmony("train", "--out", "run", *SMALL)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, out, err = harmony("join", "run", "--arch", "patch-w8-d1", "--classes", "Bag,0", "--json", *FEW)
    assert code == 0, err
    told = json.loads(out)
    assert told["checkpoint"] == "runs/joined"
    assert told["client"]["index"] == 2
    assert told["client"]["classes"]["own"] == [0, 8]
    assert told["client"]["train_images"] == 26
    assert told["begun_with"] is None
    assert [one["client"] for one in told["evaluation"]["clients"]] == [0, 1, 2]
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before

    code, out, err = harmony("join", "runs/joined", "--arch", "resnet-w8-d2", "--out", "more", *FEW)
    assert code == 0, err
    assert "mean of the run's 3" in out
    assert "cloud alone, other classes" in out
    assert "slices of resnet-w8-d1" in " ".join(out.split())
    assert harmony("evaluate", "more", "--rho", "1")[0] == 0
    code, _, err = harmony("export", "more", "--out", "bundles", "--client", "2", "--format", "onnx")
    assert code == 0, err
    assert str(open_device_bundle(tmp_path / "bundles" / "client-002").architecture) == "patch-w8-d1"


MISTAKES = [
    (("nowhere", "--arch", "patch-w8-d1"), "ArtifactMissing: nowhere"),
    (("run", "--arch", "vgg-w8-d1"), "unknown family 'vgg'"),
    (("run", "--arch", "patch-w8-d1", "--classes", "hat,"), "--classes: 'hat' is no class"),
    (("run", "--arch", "patch-w8-d1", "--images", "99999"), "--images: class"),
    (("run", "--arch", "patch-w8-d1", "--data", "nothing.npz"), "nothing.npz"),
    (("run", "--arch", "patch-w8-d1", "--out", "run"), "RunExists: run"),
]


def test_mistakes_are_one_line(harmony, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert harmony("train", "--out", "run", *SMALL)[0] == 0
    for arguments, words in MISTAKES:
        code, _, err = harmony("join", *arguments)
        assert code == 2
        (line,) = err.splitlines()
        assert words in line
    assert not (tmp_path / "runs").exists()
