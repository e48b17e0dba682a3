"""`harmony infer`: answers in a table or as JSON, from the device, the cloud, or the device because of the cloud."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from harmony.cli.main import main
from harmony.core.bundle import VECTORS, DeviceManifest, Exit, Fallback, write_vectors
from harmony.core.sealed import seal, sealing
from harmony.core.spec import Architecture, ClassMap, FeatureSpec, ImageSpec

CUT = FeatureSpec(channels=1, height=2, width=2)
IMAGE = ImageSpec(height=2, width=2, channels=1, mean=(0,), std=(1,))


def _segment(source: str, carried: str, logits: str) -> bytes:
    """Carries its input on; the logits are the sums of its two columns."""
    weight = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    constants = [numpy_helper.from_array(np.array([1, 4]), "flat"), numpy_helper.from_array(weight, "weight")]
    nodes = [
        helper.make_node("Identity", [source], [carried]),
        helper.make_node("Reshape", [source, "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "weight"], [logits]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in ((source, (1, 1, 2, 2)), (carried, (1, 1, 2, 2)), (logits, (1, 2)))
    ]
    graph = helper.make_graph(nodes, logits, ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString()
    return serialised


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Sure (exit 2) if one column of the image outweighs the other by far, unsure if they are alike."""
    with sealing(tmp_path / "bundle") as draft:
        (draft / "exit1.onnx").write_bytes(_segment("image", "hidden", "logits1"))
        (draft / "exit2.onnx").write_bytes(_segment("hidden", "feature", "logits2"))
        image = np.array([[[[0, 1], [0, 0]]]], np.float32)
        logits = np.array([[0, 1]], np.float32)
        write_vectors(
            draft / VECTORS,
            {"image": image, "hidden": image, "feature": image, "logits1": logits, "logits2": logits},
        )
        manifest = DeviceManifest(
            harmony_version="0", run="r", method="splitgp", client=0, architecture=Architecture.parse("resnet-w8-d1"),
            dataset="d", image=IMAGE, feature=CUT, gate=False, fallback=Fallback(), parameters=8,
            classes=ClassMap(names=("left", "right", "both"), own=(0, 1), tokens=(0, 1, 2)),
            exits=(Exit(name="exit1", score="msp", threshold=1), Exit(name="exit2", score="msp", threshold=0.8)),
            engines={"onnxruntime": {"exit1": "exit1.onnx", "exit2": "exit2.onnx"}},
        )  # fmt: skip
        seal(draft, manifest)
    return tmp_path / "bundle"


@pytest.fixture
def right(tmp_path: Path) -> Path:
    Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8)).save(tmp_path / "right.png")
    return tmp_path / "right.png"


@pytest.fixture
def unsure(tmp_path: Path) -> Path:
    np.save(tmp_path / "unsure.npy", np.full((2, 2), 99, np.uint8))
    return tmp_path / "unsure.npy"


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("HARMONY_KEY", raising=False)
    monkeypatch.setattr("sys.argv", ["harmony", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_a_table_of_answers(
    bundle: Path, right: Path, unsure: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "infer", bundle, right, unsure) == 0
    printed = capsys.readouterr().out
    sure, not_sure = (next(line for line in printed.splitlines() if name in line) for name in ("t.png", "e.npy"))
    assert "right" in sure
    assert "exit2" in sure
    assert "0.881" in sure
    assert "unsure; no cloud given" in not_sure


def test_json_has_everything(
    bundle: Path, right: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "infer", bundle, right, "--json") == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert (answer["label"], answer["class_name"], answer["exit"]) == (1, "right", "exit2")
    assert (answer["degraded"], answer["would_offload"], len(answer["scores"])) == (False, False, 2)
    assert answer["threshold"] == 0.8
    assert answer["input"] == str(right)


def test_a_cloud_that_is_away_degrades_only_what_needed_it(
    bundle: Path, right: Path, unsure: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "infer", bundle, right, unsure, "--server", "http://127.0.0.1:1", "--json") == 0
    sure, not_sure = json.loads(capsys.readouterr().out)
    assert (sure["degraded"], sure["reason"]) == (False, None)
    assert (not_sure["degraded"], not_sure["exit"]) == (True, "exit2")
    assert not_sure["reason"].startswith("CloudUnreachable: http://127.0.0.1:1")


def test_mistakes_are_one_line(
    bundle: Path, right: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((3, 2, 3), np.uint8)).save(tmp_path / "other.png")
    (tmp_path / "broken.png").write_bytes(right.read_bytes()[:40])
    for arguments, words in (
        ((bundle, tmp_path / "other.png"), "InvalidInput: .*other.png: holds 3x2 RGB, the model takes 2x2x1 uint8"),
        ((bundle, tmp_path / "broken.png"), "DataForeign: .*broken.png"),
        ((bundle, tmp_path / "gone.png"), "DataMissing: .*gone.png"),
        ((tmp_path, right), "ArtifactMissing: .*manifest.json"),
        ((bundle, right, "--engine", "executorch"), "EngineUnavailable"),
        ((bundle, right, "--server", "nonsense"), "ConfigError: nonsense"),
        ((bundle, right, "--server", "http://127.0.0.1:1", "--deadline", "0"), "ConfigError: deadline"),
    ):
        assert _run(monkeypatch, "infer", *arguments) == 2
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        assert captured.out == ""
        assert re.match(f"harmony: {words}", line), line


def test_verify(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(monkeypatch, "verify", bundle) == 0
    assert "device-bundle" in capsys.readouterr().out
    assert _run(monkeypatch, "verify", bundle, bundle, "--json") == 0
    reports = json.loads(capsys.readouterr().out)
    assert [report["engines"][0]["max_error"] for report in reports] == [0, 0]
    with (bundle / "exit2.onnx").open("ab") as file:
        file.write(b"x")
    assert _run(monkeypatch, "verify", bundle) == 2
    assert "ArtifactCorrupt" in capsys.readouterr().err
