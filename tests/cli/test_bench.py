"""`harmony bench` as its user meets it: one line for a mistake, nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "harmony.cli.main", "bench"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=cwd)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "ArtifactMissing: nowhere: no harmony-device-bundle here (check the path)"),
        (["nowhere", "--links", "wifi,5g"], "ConfigError: links: '5g' is no link (choose from wifi, lte"),
        (["nowhere", "--rho", "0,x"], "ConfigError: --rho: '0,x' is no list of numbers (write for example 0,0.5,1)"),
        (["nowhere", "--rho", "-1"], "ConfigError: bench: rhos.0: Input should be greater than or equal to 0"),
        (["nowhere", "--rounds", "0"], "ConfigError: bench: rounds: Input should be greater than or equal to 1"),
        (["nowhere", "--engine", "tflite"], "ConfigError: bench: engines.0: Input should be 'onnxruntime' or 'exec"),
        (["nowhere", "--slowdown", "nan"], "ConfigError: bench: slowdown"),
        (["--tier", "arm", "nowhere"], "ConfigError: --core: name a core or a device (for example --device pixel-3a)"),
        (["--adb", "no serial", "nowhere", "--runner", ".", "--images", "x"], "ConfigError: --adb: 'no serial' is no"),
        (["nowhere", "--cloud", "a", "--server", "b"], "ConfigError: bench: give a cloud bundle or a server, not both"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"harmony: {says}")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = run("nowhere", "--out", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "harmony: RunExists: out: this folder is there already (choose another --out, or add --force)\n",
    )
    done = run("nowhere", "--out", "out", "--force", cwd=tmp_path)
    assert "something else than results of harmony-bench" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sweep", "nowhere"], "ArtifactMissing: nowhere: no bundle, folder of bundles or run"),
        (["sweep", "nowhere", "--rho", "x"], "ConfigError: --rho: 'x' is no list of numbers"),
        (
            ["sweep", "nowhere", "--device", "pixel-9"],
            "ConfigError: device: 'pixel-9' is no known device (choose from p",
        ),
        (["sweep", "nowhere", "--links", "5g"], "ConfigError: links: '5g' is no link (choose from wifi"),
        (["sweep", "nowhere", "--engine", "tflite"], "ConfigError: bench: engines.0: Input should be"),
        (["report", "nowhere"], "ArtifactMissing: nowhere: no sweep here (make one with: harmony bench sweep"),
    ],
)
def test_a_mistake_in_a_sweep_is_one_line_and_leaves_nothing(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"harmony: {says}")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_has_examples() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "harmony bench bundles/client-* --cloud bundles/cloud" in done.stdout
