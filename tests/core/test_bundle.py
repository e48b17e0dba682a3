"""Bundles: what a manifest may say, and what must lie beside it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from harmony.core.bundle import (
    VECTORS,
    CloudManifest,
    DeviceManifest,
    open_cloud_bundle,
    open_device_bundle,
    read_vectors,
    write_vectors,
)
from harmony.core.errors import ArtifactCorrupt, ArtifactMissing, StorageError
from harmony.core.sealed import Manifest, seal, sealing

EXIT1 = {"name": "exit1", "score": "own_mass", "threshold": 0.5, "budget": 0.5}
EXIT2 = {"name": "exit2", "score": "entropy", "threshold": -1.0}
CUT = {"channels": 32, "height": 4, "width": 4}
DEVICE: dict[str, Any] = {
    "harmony_version": "0.1.0",
    "run": "r",
    "method": "harmony",
    "client": 3,
    "architecture": {"family": "resnet", "width": 16, "depth": 1},
    "dataset": "d",
    "image": {"height": 28, "width": 28, "channels": 1, "mean": [0.5], "std": [0.5]},
    "feature": CUT,
    "classes": {"names": ["a", "b", "c"], "own": [1, 2], "tokens": [2, 0, 1]},
    "exits": [EXIT1, EXIT2],
    "gate": True,
    "fallback": {},
    "engines": {"onnxruntime": {"exit1": "one.onnx", "exit2": "two.onnx"}, "executorch": {"program": "both.pte"}},
    "parameters": 1000,
    "checkpoint": "0" * 64,
}
CLOUD: dict[str, Any] = {
    "harmony_version": "0.1.0",
    "run": "r",
    "method": "harmony",
    "feature": CUT,
    "tokens": 3,
    "parameters": 1000,
}
ARRAYS = {
    "feature": np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32),
    "empty": np.zeros((0, 2), "f4"),
}


def write(folder: Path, manifest: Manifest, files: tuple[str, ...]) -> Path:
    with sealing(folder) as draft:
        for name in files:
            (draft / name).write_bytes(name.encode())
        seal(draft, manifest)
    return folder


def test_a_device_bundle_is_read_back(tmp_path: Path) -> None:
    manifest = DeviceManifest.model_validate(DEVICE)
    found = open_device_bundle(write(tmp_path / "b", manifest, ("one.onnx", "two.onnx", "both.pte", VECTORS)))
    assert found == manifest.model_copy(update={"files": found.files})
    assert found.fallback.codec == "int8-zstd"
    assert found.classes.own == (1, 2)


def test_a_cloud_bundle_is_read_back(tmp_path: Path) -> None:
    manifest = CloudManifest.model_validate(CLOUD)
    found = open_cloud_bundle(write(tmp_path / "b", manifest, ("back_end.onnx", VECTORS)))
    assert found == manifest.model_copy(update={"files": found.files})
    with pytest.raises(ArtifactCorrupt, match="is a 'harmony-cloud-bundle', not a 'harmony-device-bundle'"):
        open_device_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"exits": [EXIT2, EXIT1]}, "exit1, then exit2"),
        ({"exits": [EXIT1, EXIT1]}, "exit1, then exit2"),
        ({"exits": [EXIT1]}, "at least 2"),
        ({"exits": [EXIT1, EXIT2, EXIT2]}, "at most 2"),
        ({"exits": [EXIT1 | {"threshold": float("nan")}, EXIT2]}, "finite"),
        ({"exits": [EXIT1 | {"threshold": float("inf")}, EXIT2]}, "finite"),
        ({"exits": [EXIT1 | {"score": "odin"}, EXIT2]}, "own_mass"),
        ({"exits": [EXIT1 | {"budget": 1.5}, EXIT2]}, "less than or equal to 1"),
        ({"gate": False}, "needs a gate head"),
        ({"engines": {}}, "at least one engine"),
        ({"engines": {"tflite": {"program": "a"}}}, "onnxruntime"),
        ({"engines": {"onnxruntime": {"exit1": "../one.onnx"}}}, "pattern"),
        ({"engines": {"onnxruntime": {"exit1": "/one.onnx"}}}, "pattern"),
        ({"client": -1}, "greater than or equal to 0"),
        ({"checkpoint": "abc"}, "pattern"),
        ({"fallback": {"model": "../x"}}, "pattern"),
        ({"fallback": {"codec": "gzip"}}, "int8-zstd"),
        ({"tolerance": {"absolute": float("nan")}}, "absolute"),
        ({"classes": {"names": ["a", "b"], "own": [], "tokens": [0, 1]}}, "at least 1"),
    ],
)
def test_a_device_manifest_that_says_what_it_may_not(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DeviceManifest.model_validate(DEVICE | change)


@pytest.mark.parametrize(
    "change", [{"tokens": 1}, {"model": "a b"}, {"model": ""}, {"program": "../x.onnx"}, {"classes": []}]
)
def test_a_cloud_manifest_that_says_what_it_may_not(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        CloudManifest.model_validate(CLOUD | change)


@pytest.mark.parametrize(
    ("engines", "files", "said"),
    [
        (
            {"onnxruntime": {"exit1": "a"}},
            ("a", VECTORS),
            r"engines\.onnxruntime: needs the roles \['exit1', 'exit2'\]",
        ),
        ({"onnxruntime": {}}, (VECTORS,), r"engines\.onnxruntime: needs the roles"),
        ({"executorch": {"exit1": "a", "exit2": "a"}}, ("a", VECTORS), r"engines\.executorch: .*\['program'\]"),
        ({"executorch": {"program": "a", "more": "a"}}, ("a", VECTORS), r"engines\.executorch: .*\['program'\]"),
        ({"executorch": {"program": "a"}}, (VECTORS,), r"program: names 'a', which is not among its files"),
        ({"onnxruntime": {"exit1": "a", "exit2": "b"}}, ("a", VECTORS), r"exit2: names 'b'"),
        ({"executorch": {"program": "a"}}, ("a",), rf"vectors: names '{VECTORS}'"),
    ],
)
def test_engines_need_their_roles_and_files(
    tmp_path: Path, engines: dict[str, Any], files: tuple[str, ...], said: str
) -> None:
    folder = write(tmp_path / "b", DeviceManifest.model_validate(DEVICE | {"engines": engines}), files)
    with pytest.raises(ArtifactCorrupt, match=rf"b/manifest\.json: {said}"):
        open_device_bundle(folder)


@pytest.mark.parametrize(("files", "role"), [((VECTORS,), "program"), (("back_end.onnx",), "vectors")])
def test_the_cloud_needs_its_files(tmp_path: Path, files: tuple[str, ...], role: str) -> None:
    with pytest.raises(ArtifactCorrupt, match=rf"manifest\.json: {role}: names"):
        open_cloud_bundle(write(tmp_path / "b", CloudManifest.model_validate(CLOUD), files))


def test_no_bundle_here(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="no harmony-device-bundle here"):
        open_device_bundle(tmp_path / "nothing")
    with pytest.raises(ArtifactMissing, match="no harmony-cloud-bundle here"):
        open_cloud_bundle(tmp_path / "nothing")


def test_vectors_keep_every_bit(tmp_path: Path) -> None:
    turned = ARRAYS["feature"].transpose(2, 0, 1)
    write_vectors(tmp_path / VECTORS, ARRAYS | {"turned": turned})
    found = read_vectors(tmp_path / VECTORS)
    assert set(found) == {"feature", "empty", "turned"}
    for name, array in (ARRAYS | {"turned": turned}).items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array)


def test_vectors_on_a_full_disk_are_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No space left"), sealing(tmp_path / "b") as draft:
        (draft / VECTORS).symlink_to("/dev/full")
        write_vectors(draft / VECTORS, ARRAYS)
    assert list(tmp_path.iterdir()) == []


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 90_000_000) + b"{",
        safetensors(b"not json"),
        safetensors(b'{"a": ' + b"[" * 100_000),
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4),
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 3),
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 5),
        safetensors({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"\0" * 4),
        safetensors({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, b"\0" * 4),
        safetensors({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4),
        safetensors({"a": {"dtype": "object", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4),
    ],
    ids=range(13),
)
def test_damaged_vectors_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / VECTORS).write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=rf"{VECTORS}: .*(cannot be read|not float32)"):
        read_vectors(tmp_path / VECTORS)


@pytest.mark.parametrize("array", [np.zeros(2), np.zeros(2, np.int64), np.zeros(2, np.float16)])
def test_vectors_are_float32(tmp_path: Path, array: NDArray[Any]) -> None:
    write_vectors(tmp_path / VECTORS, {"a": array})
    with pytest.raises(ArtifactCorrupt, match=rf"{VECTORS}: a: is {array.dtype}, not float32"):
        read_vectors(tmp_path / VECTORS)


def test_missing_vectors_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorrupt, match=rf"{VECTORS}: cannot be read"):
        read_vectors(tmp_path / VECTORS)
