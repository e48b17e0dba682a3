"""The device as a process of its own, without torch, and images from files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from harmony.core.adaptive import SENDS_NOTHING, HeldOut
from harmony.core.errors import DataForeign, DataMissing, HarmonyError, InvalidInput
from harmony.core.spec import ImageSpec
from harmony.device import Device
from harmony.device.images import read_image
from harmony.device.stream import map_images

COLUMNS = {
    "label", "exit", "local_label", "threshold", "probability", "seconds", "bytes_sent", "bytes_received",
    "would_offload", "degraded", "reason", "score1", "score2",
}  # fmt: skip
GREY = ImageSpec(height=4, width=5, channels=1, mean=(0,), std=(1,))


def run_stream(*arguments: object, key: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harmony.device.stream", *map(str, arguments)]
    environment = {"PATH": "/usr/bin"} | ({} if key is None else {"DEVICE_KEY": key})
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Any]:
    values = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), dtype=np.uint8)
    save_file({"images": values}, tmp_path / "images.safetensors")
    return tmp_path / "images.safetensors", values


def test_a_stream_answers_as_the_device_does_without_torch(
    make_bundle: Callable[..., Path], images: tuple[Path, Any], tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "b", thresholds=(0.5, 0.5))
    done = run_stream(bundle, "--images", images[0], "--out", tmp_path / "report.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["torch_loaded"] is False
    assert 20e6 < report["peak_rss_bytes"] < 200e6
    assert report["cpu_seconds"] > 0
    assert report["versions"]["numpy"] == np.__version__
    samples = report["samples"]
    assert set(samples) == COLUMNS
    device = Device.open(bundle)
    for row, image in enumerate(images[1]):
        answer = device.answer(image)
        assert (samples["label"][row], samples["exit"][row]) == (answer.label, answer.exit)
        assert samples["score1"][row] == pytest.approx(answer.scores[0])
        assert (samples["score2"][row] is None) == (answer.exit == "exit1")
    assert len(set(samples["exit"])) == 2, "both exits must have been taken, or the test says little"


def test_its_threshold_follows_the_stream_unless_it_is_fixed(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    """Held-out scores far below whatever comes: nothing looks foreign."""
    bundle = make_bundle(tmp_path / "b", held_out=HeldOut(images=1, scores=(-1e9,)))
    values = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)
    save_file({"images": values}, tmp_path / "images.safetensors")
    found = {}
    for choice in ("adaptive", "fixed"):
        out = tmp_path / f"{choice}.json"
        done = run_stream(bundle, "--images", tmp_path / "images.safetensors", "--out", out, "--threshold", choice)
        assert (done.returncode, done.stderr) == (0, "")
        samples = json.loads(out.read_text())["samples"]
        found[choice] = list(zip(samples["threshold"], samples["would_offload"], strict=True))
    assert found["adaptive"] == [(1e9, True)] * 16 + [(SENDS_NOTHING, False)] * 4
    assert found["fixed"] == [(1e9, True)] * 20


def test_a_stream_with_a_cloud(
    bundle: Path, images: tuple[Path, Any], tmp_path: Path, serve: Any, reply: Any, reply_probabilities: Any
) -> None:
    metadata = {
        "inputs": [{"name": "feature", "shape": [-1, 2, 4, 4]}],
        "outputs": [{"name": "probabilities", "shape": [-1, 5]}],
    }

    def behave(handler: Any, attempt: int) -> None:
        if attempt == 0:
            reply(handler, 200, json.dumps(metadata).encode())
        else:
            reply_probabilities(handler, np.array([0, 0, 1, 0, 0], np.float32))

    with serve(behave) as service:
        done = run_stream(
            bundle, "--images", images[0], "--out", tmp_path / "r.json", "--server", service.url,
            "--key-env", "DEVICE_KEY", "--limit", 4, "--deadline", 5, key="secret",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["samples"]["exit"] == ["cloud"] * 4
    assert report["samples"]["label"] == [4] * 4
    assert min(report["samples"]["bytes_sent"]) > 200
    assert report["torch_loaded"] is False
    assert {request["headers"]["authorization"] for request in service.requests} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--images": "gone.safetensors"}, r"DataMissing: .*gone\.safetensors"),
        ({"--images": "{bundle}/manifest.json"}, "DataForeign: .*manifest"),
        ({"--images": "{bundle}/vectors.safetensors"}, "DataForeign: .*no tensor 'images'.*save_file"),
        ({"--server": "http://127.0.0.1:1", "--key-env": "UNSET"}, "ConfigError: UNSET: this variable is not set"),
        ({"--server": "http://127.0.0.1:1"}, "CloudUnreachable: http://127.0.0.1:1"),
        ({"--engine": "executorch"}, "EngineUnavailable: .*no files for executorch"),
    ],
)
def test_a_stream_that_cannot_run_says_why_on_one_line(
    change: dict[str, str], words: str, bundle: Path, images: tuple[Path, Any], tmp_path: Path
) -> None:
    options = {"--images": str(images[0]), "--out": str(tmp_path / "r.json")} | change
    flat = [part.format(bundle=bundle) for pair in options.items() for part in pair]
    done = run_stream(bundle, *flat)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.search(words, line), line
    assert not (tmp_path / "r.json").exists()


def _tensors(**changes: Any) -> bytes:
    entry = {"dtype": "U8", "shape": [2, 4, 4, 1], "data_offsets": [0, 32]} | changes
    header = json.dumps({"images": entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(range(32))


def test_images_are_mapped_as_the_format_says(tmp_path: Path, images: tuple[Path, Any]) -> None:
    assert np.array_equal(map_images(images[0]), images[1])
    (tmp_path / "x").write_bytes(_tensors())
    assert map_images(tmp_path / "x").ravel().tolist() == list(range(32))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 7, b"\0" * 8, b"\xff" * 40, _tensors()[:-1], _tensors()[:20],
        _tensors(dtype="I64"), _tensors(dtype=None), _tensors(shape=[2, 4, 4, 2]), _tensors(shape=[-2, -4, 4, 1]),
        _tensors(shape=[2.0, 4, 4, 1]), _tensors(shape=[0, 4, 4, 1], data_offsets=[0, 0]), _tensors(shape=7),
        _tensors(data_offsets=[-900, -868]), _tensors(data_offsets=[8, 40]), _tensors(data_offsets=["a", "b"]),
        _tensors(data_offsets=[1 << 70, (1 << 70) + 32]),
    ],
)  # fmt: skip
def test_an_images_file_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataForeign, match="x: holds no tensor 'images'"):
        map_images(tmp_path / "x")


def _save(path: Path, values: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize(
    ("suffix", "shape"),
    [(".png", (4, 5)), (".png", (4, 5, 3)), (".npy", (4, 5)), (".npy", (4, 5, 1)), (".npy", (4, 5, 3))],
)
def test_images_are_read_as_they_are(suffix: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    channels = shape[2] if len(shape) == 3 else 1
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    spec = ImageSpec(height=4, width=5, channels=channels, mean=(0,) * channels, std=(1,) * channels)
    found = read_image(_save(tmp_path / f"image{suffix}", values), spec)
    assert np.array_equal(found, values.reshape(4, 5, channels))


def test_a_jpeg_is_read(tmp_path: Path) -> None:
    path = _save(tmp_path / "image.JPG", np.full((4, 5), 99, np.uint8))
    assert abs(int(read_image(path, GREY)[0, 0, 0]) - 99) < 3


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("size.png", np.zeros((5, 4), np.uint8), "holds 5x4 L, the model takes 4x5x1 uint8"),
        ("colour.png", np.zeros((4, 5, 3), np.uint8), "holds 4x5 RGB"),
        ("size.npy", np.zeros((5, 5), np.uint8), "holds 5x5x1 uint8"),
        ("type.npy", np.zeros((4, 5), np.int32), "holds 4x5x1 int32"),
        ("large.npy", np.zeros((400, 500), np.uint8), "is larger than any"),
    ],
)
def test_images_of_another_kind_name_the_file_what_is_and_what_is_due(
    name: str, values: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=f"{name}: {words}"):
        read_image(_save(tmp_path / name, values), GREY)


def test_numbers_that_are_not_finite_name_the_file(tmp_path: Path) -> None:
    spec = GREY.model_copy(update={"dtype": "float32"})
    np.save(tmp_path / "nan.npy", np.full((4, 5, 1), np.nan, np.float32))
    with pytest.raises(InvalidInput, match=r"nan\.npy: holds numbers that are not finite"):
        read_image(tmp_path / "nan.npy", spec)


def _damaged(folder: Path) -> dict[str, tuple[bytes, type[HarmonyError]]]:
    png = _save(folder / "x.png", np.random.default_rng(0).integers(0, 256, (4, 5), dtype=np.uint8)).read_bytes()
    npy = _save(folder / "x.npy", np.zeros((4, 5), np.uint8)).read_bytes()
    objects = folder / "o.npy"
    np.save(objects, np.array([{}], object), allow_pickle=True)
    return {
        "cut.png": (png[: len(png) // 2], DataForeign),
        "empty.png": (b"", DataForeign),
        "text.png": (b"hello", DataForeign),
        "gif.png": (b"GIF89a" + bytes(50), DataForeign),
        "cut.npy": (npy[:-3], DataForeign),
        "empty.npy": (b"", DataForeign),
        "header.npy": (npy[:20], DataForeign),
        "pickle.npy": (objects.read_bytes(), DataForeign),
        "other.tiff": (b"II*\0", DataForeign),
    }


@pytest.mark.parametrize(
    "name",
    ["cut.png", "empty.png", "text.png", "gif.png", "cut.npy", "empty.npy", "header.npy", "pickle.npy", "other.tiff"],
)
def test_damaged_files_are_foreign(name: str, tmp_path: Path) -> None:
    content, error = _damaged(tmp_path)[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=name):
        read_image(tmp_path / name, GREY)


def test_an_archive_is_no_image(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(1))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(DataForeign, match="archive"):
        read_image(tmp_path / "x.npy", GREY)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="gone"):
        read_image(tmp_path / "gone.png", GREY)
