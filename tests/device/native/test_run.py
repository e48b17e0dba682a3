"""harmony-run: the native core as a program of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from harmony.core.bundle import open_device_bundle
from harmony.core.errors import ArtifactCorrupt
from harmony.device import Device

Run = Callable[..., subprocess.CompletedProcess[str]]
Make = Callable[..., Path]


def _rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_answers_as_the_device_does(
    native: Path, real: Path, images: NDArray[np.uint8], run: Run, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", images)
    rows = _rows(run(real, tmp_path / "images.npy"))
    device = Device.open(real, engine="native")
    assert [row["image"] for row in rows] == list(range(len(images)))
    for image, row in zip(images, rows, strict=True):
        answer = device.answer(image)
        assert (row["exit"], row["label"], row["class"]) == (answer.exit, answer.label, answer.class_name)
        assert (row["would_offload"], row["probability"]) == (answer.would_offload, answer.probability)
        assert [np.float32(score) for score in row["scores"]] == list(answer.scores)


def test_a_device_process_with_the_native_engine(
    native: Path, real: Path, images: NDArray[np.uint8], run: Run, tmp_path: Path
) -> None:
    """The same answers as harmony-run's, in a process without torch."""
    np.save(tmp_path / "images.npy", images[:50])
    save_file({"images": images[:50].copy()}, tmp_path / "images.safetensors")
    command = [sys.executable, "-m", "harmony.device.stream", str(real), "--engine", "native"]
    command += ["--images", str(tmp_path / "images.safetensors"), "--out", str(tmp_path / "report.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    report, rows = json.loads((tmp_path / "report.json").read_bytes()), _rows(run(real, tmp_path / "images.npy"))
    assert (report["engine"], report["torch_loaded"]) == ("native", False)
    for name in ("exit", "label", "would_offload", "probability"):
        assert report["samples"][name] == [row[name] for row in rows]


def test_its_threshold_follows_the_stream_unless_it_is_fixed(
    native: Path, real: Path, images: NDArray[np.uint8], run: Run, changed: Callable[..., None], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(real, bundle)
    np.save(tmp_path / "images.npy", images)
    fixed = [row["threshold"] for row in _rows(run(real, tmp_path / "images.npy"))]
    changed(bundle, held_out={"images": 4, "scores": [-100.0, -99.0, -98.0]})
    rows = _rows(run(bundle, tmp_path / "images.npy"))
    device = Device.open(bundle, engine="native")
    assert [row["threshold"] for row in rows] == [device.answer(image).threshold for image in images]
    assert not any(row["would_offload"] for row in rows[16:])
    assert [row["threshold"] for row in _rows(run(bundle, tmp_path / "images.npy", "--fixed"))] == fixed
    device = Device.open(bundle, engine="native", threshold="fixed")
    assert [device.answer(image).threshold for image in images] == fixed


@pytest.mark.parametrize(
    ("held_out", "problem"),
    [
        ({"images": 4, "scores": [1.0, 2.0]}, "held_out.scores: needs 3 values"),
        ({"images": 4, "scores": [1.0, 3.0, 2.0]}, "held_out.scores: is not in ascending order"),
        ({"images": 0, "scores": [1.0]}, "held_out.images: is not a whole number from 1"),
        ({"images": 1, "scores": ["a"]}, "held_out.scores.0: is not a number"),
        ({"images": 2**40, "scores": [1.0]}, "held_out.images: is not a whole number"),
        ({"images": 1, "scores": [1.0], "more": 1}, "held_out.more: is not a field"),
        ([], "held_out: is not an object"),
    ],
)
def test_held_out_scores_that_make_no_sense_are_refused(
    held_out: object, problem: str, real: Path, run: Run, changed: Callable[..., None], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(real, bundle)
    changed(bundle, held_out=held_out)
    done = run(bundle, tmp_path / "images.npy")
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
    with pytest.raises(ArtifactCorrupt, match="held_out"):
        open_device_bundle(bundle)


def test_bytes_without_a_header_are_images_too(real: Path, images: NDArray[np.uint8], run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images[:9])
    np.save(tmp_path / "plain.npy", images[:9, :, :, 0])
    (tmp_path / "images.bin").write_bytes(images[:9].tobytes())
    expected = _rows(run(real, tmp_path / "images.npy"))
    assert _rows(run(real, tmp_path / "images.bin")) == expected
    assert _rows(run(real, tmp_path / "plain.npy")) == expected
    np.save(tmp_path / "one.npy", images[0])
    assert _rows(run(real, tmp_path / "one.npy")) == expected[:1]
    assert _rows(run(real, tmp_path / "images.npy", "--limit", 4)) == expected[:4]


def test_times_by_the_exit_taken(real: Path, images: NDArray[np.uint8], run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images)
    *rows, last = _rows(run(real, tmp_path / "images.npy", "--time"))
    places = ["unsure" if row["would_offload"] else row["exit"] for row in rows]
    times = last["microseconds"]
    assert {name: one["images"] for name, one in times.items()} == {name: places.count(name) for name in times}
    assert set(times["exit1"]) == {"images", "prepare", "exit1", "total"}
    assert set(times["exit2"]) == {"images", "prepare", "exit1", "exit2", "total"}
    assert set(times["unsure"]) == {"images", "prepare", "exit1", "exit2", "total", "frame"}
    assert all(one["total"] > one["exit1"] > 0 for one in times.values())
    assert last["peak_kib"] > 0


def test_names_of_classes_are_json(make_tiny: Make, run: Run, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(0, 1, (40, 4, 6, 3)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    assert {row["class"] for row in _rows(run(make_tiny(tmp_path / "b"), tmp_path / "images.npy"))} == {
        "bée\n", "cat", "eel",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "DataForeign: .*no .npy file"),
        (b"\x93NUMPY\x01\x00\xff\xff", "DataForeign: .*ends in its header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "DataForeign: .*header without end"),
        (b"\x93NUMPY\x01\x00\x02\x00{}", "DataForeign: .*none of numpy's"),
        (np.zeros((2, 28, 28, 3), np.uint8), "InvalidInput: .*2x28x28x3 .u1, the model takes n images of 28x28x1"),
        (np.zeros((2, 28, 28, 1), np.float32), "InvalidInput: .*<f4"),
        (np.zeros((28, 28, 1, 5), np.uint8).T, "DataForeign: .*Fortran"),
        (np.zeros((2, 28), np.uint8), "InvalidInput"),
        (np.zeros((), np.uint8), "InvalidInput"),
    ],
)
def test_images_that_are_none(content: bytes | NDArray[Any], error: str, real: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    _assert_refused(run(real, path), error)


def test_a_file_that_is_cut_short(real: Path, images: NDArray[np.uint8], run: Run, tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, images[:3])
    path.write_bytes(path.read_bytes()[:-1])
    _assert_refused(run(real, path), "DataForeign: .*shorter or longer")
    path.rename(tmp_path / "images.bin")
    _assert_refused(run(real, tmp_path / "images.bin"), "DataForeign: .*no whole images of 784 bytes")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "ConfigError: a bundle and a file of images are needed"),
        (["{bundle}"], "ConfigError: a bundle and a file"),
        (["{bundle}", "x", "--limit", "-1"], "ConfigError: --limit: '-1' is no number"),
        (["{bundle}", "x", "--limit"], "ConfigError: --limit: needs a value"),
        (["{bundle}", "x", "--fast"], "ConfigError: --fast: is no option"),
        (["{bundle}", "nowhere.npy"], "DataMissing: nowhere.npy: cannot be read"),
        (["{bundle}", "/"], "DataForeign: /: is not a plain file"),
        (["no\x1b[31m\nwhere", "x"], r"ArtifactMissing: no \[31m where: cannot be read"),
        (["{bundle}", "{images}", "--features", "{images}/f"], "StorageError: .*cannot be made"),
    ],
)
def test_arguments(
    arguments: list[str], error: str, real: Path, images: NDArray[np.uint8], run: Run, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", images[:1])
    places = {"bundle": real, "images": tmp_path / "images.npy"}
    _assert_refused(run(*(one.format(**places) for one in arguments)), error)


def test_help(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("harmony-run BUNDLE IMAGES")


def _assert_refused(done: subprocess.CompletedProcess[str], error: str) -> None:
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.match("harmony-run: " + error, done.stderr), done.stderr
