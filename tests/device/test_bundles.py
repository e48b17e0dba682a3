"""Bundles that are not what was sealed, and bundles whose parts do not fit: a named error before anything runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harmony.core.errors import (
    ArtifactCorrupt,
    ArtifactError,
    ArtifactMissing,
    ArtifactTooNew,
    ConfigError,
    ContractMismatch,
    EngineUnavailable,
    HarmonyError,
    ParityFailed,
)
from harmony.core.spec import FeatureSpec
from harmony.device import Device, verify

Make = Callable[..., Path]
FILES = ("manifest.json", "manifest.sha256", "exit1.onnx", "exit2.onnx", "vectors.safetensors")


@pytest.fixture(scope="module")
def whole(make_bundle: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("whole") / "bundle")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_one_changed_byte_anywhere(name: str, where: float, flip: int, whole: Path) -> None:
    path = whole / name
    content = path.read_bytes()
    position = int(where * len(content))
    try:
        path.write_bytes(content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :])
        with pytest.raises(ArtifactError, match=r"manifest\.|onnx|safetensors"):
            Device.open(whole)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0.0, 0.5, 0.999])
def test_truncated(name: str, left: float, bundle: Path) -> None:
    path = bundle / name
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    with pytest.raises(ArtifactCorrupt):
        Device.open(bundle)


@pytest.mark.parametrize("name", FILES)
def test_missing(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    with pytest.raises(ArtifactMissing, match=name):
        Device.open(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_link_is_no_file(name: str, bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / name, tmp_path / "elsewhere")
    (bundle / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=name):
        Device.open(bundle)


def test_a_file_too_many(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("hello")
    with pytest.raises(ArtifactCorrupt, match=r"notes\.txt"):
        Device.open(bundle)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="nowhere"):
        Device.open(tmp_path / "nowhere")


def _reseal(bundle: Path, **changes: object) -> None:
    """Edit the manifest as somebody would who also writes its hash."""
    path = bundle / "manifest.json"
    text = json.dumps(json.loads(path.read_text()) | changes).encode()
    path.write_bytes(text)
    (bundle / "manifest.sha256").write_text(f"{hashlib.sha256(text).hexdigest()}  manifest.json\n")


def test_a_newer_version(bundle: Path) -> None:
    _reseal(bundle, format_version=2)
    with pytest.raises(ArtifactTooNew, match=r"version 2.*update harmony-sfl"):
        Device.open(bundle)


def test_another_kind_of_folder(bundle: Path) -> None:
    _reseal(bundle, format="harmony-checkpoint")
    with pytest.raises(ArtifactCorrupt, match="harmony-checkpoint"):
        Device.open(bundle)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("exits", []),
        ("client", -1),
        ("engines", {}),
        ("engines", {"onnxruntime": {"exit1": "../exit1.onnx", "exit2": "exit2.onnx"}}),
        ("engines", {"onnxruntime": {"exit1": "exit1.onnx"}}),
        ("engines", {"onnxruntime": {"exit1": "exit1.onnx", "exit2": "other.onnx"}}),
        ("image", {"height": 4, "width": 4, "channels": 1, "mean": [0], "std": [0]}),
        ("surprise", 1),
    ],
)
def test_a_manifest_that_makes_no_sense(field: str, value: object, bundle: Path) -> None:
    _reseal(bundle, **{field: value})
    with pytest.raises(ArtifactCorrupt, match=r"manifest\.json: .*(" + field + "|engine|other)"):
        Device.open(bundle)


def test_another_cut_than_the_graphs(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", feature=FeatureSpec(channels=3, height=4, width=4))
    with pytest.raises(ContractMismatch, match=r"exit2\.onnx.*'feature': \(1, 3, 4, 4\)"):
        Device.open(bundle)


def test_a_gate_that_the_graphs_lack(make_bundle: Make, tmp_path: Path) -> None:
    net = make_bundle.net  # type: ignore[attr-defined]
    files = {f"{role}.onnx": net.onnx(role, gate=False) for role in ("exit1", "exit2")}
    with pytest.raises(ContractMismatch, match=r"exit1\.onnx.*gate1"):
        Device.open(make_bundle(tmp_path / "b", files=files))


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x0a" * 40])
def test_a_sealed_file_that_is_no_graph(content: bytes, make_bundle: Make, tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorrupt, match=r"exit2\.onnx.*(cannot be loaded|is not an ONNX file)"):
        Device.open(make_bundle(tmp_path / "b", files={"exit2.onnx": content}))


def test_an_engine_that_the_bundle_lacks_or_nobody_has(bundle: Path) -> None:
    with pytest.raises(EngineUnavailable, match="no files for executorch, only for onnxruntime"):
        Device.open(bundle, engine="executorch")
    with pytest.raises(ConfigError, match="'tflite' is no engine"):
        Device.open(bundle, engine="tflite")  # type: ignore[arg-type]


def test_verify_says_what_it_found(bundle: Path) -> None:
    report = verify(bundle)
    assert (report.kind, report.files, report.vectors) == ("harmony-device-bundle", 3, 3)
    (check,) = report.engines
    assert check.engine == "onnxruntime"
    assert check.max_error is not None
    assert check.max_error < 1e-5


@pytest.mark.parametrize("name", ["hidden", "logits1", "gate1", "feature", "logits2", "gate2"])
@pytest.mark.parametrize("wrong", [0.01, np.nan])
def test_vectors_that_the_graphs_do_not_give(name: str, wrong: float, make_bundle: Make, tmp_path: Path) -> None:
    vectors = make_bundle.net.vectors(gate=True)  # type: ignore[attr-defined]
    vectors[name][-1].flat[-1] += wrong
    with pytest.raises(ParityFailed, match=f"{name}: differs from the test vectors by up to"):
        verify(make_bundle(tmp_path / "b", vectors=vectors))


@pytest.mark.parametrize("fault", ["missing", "shape", "count", "dtype", "empty", "scalar"])
def test_vectors_that_do_not_fit_the_manifest(fault: str, make_bundle: Make, tmp_path: Path) -> None:
    vectors = make_bundle.net.vectors(gate=True)  # type: ignore[attr-defined]
    if fault == "missing":
        del vectors["gate2"]
    elif fault == "empty":
        vectors = {name: value[:0] for name, value in vectors.items()}
    else:
        value = vectors["logits2"]
        changed = {"shape": value[:, :2], "count": value[:2], "dtype": value.astype(np.float64), "scalar": value[0, 0]}
        vectors["logits2"] = changed[fault]
    with pytest.raises(ArtifactCorrupt, match=r"vectors\.safetensors"):
        verify(make_bundle(tmp_path / "b", vectors=vectors))


def test_vectors_that_cannot_be_parsed(make_bundle: Make, bundle: Path) -> None:
    path = bundle / "vectors.safetensors"
    path.write_bytes(b"\xff" * 40)
    document = json.loads((bundle / "manifest.json").read_text())
    document["files"][path.name] = {"size": 40, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    _reseal(bundle, **document)
    with pytest.raises(HarmonyError, match=r"vectors\.safetensors.*cannot be read"):
        verify(bundle)
