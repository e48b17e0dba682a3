"""Other runtimes: answers are compared before anything is timed, and what is missing or wrong is named."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from harmony.bench.peers import environments, run
from harmony.bench.peers.environments import Needs, environment
from harmony.bench.peers.results import PeersBench, PeersSettings
from harmony.cli.main import main
from harmony.core.bundle import VECTORS, open_device_bundle
from harmony.core.errors import ConfigError, EngineError, EngineUnavailable
from harmony.core.sealed import digest_of, seal, sealing

if TYPE_CHECKING:
    from tests.bench.conftest import Federation

_HERE = {name: all(find_spec(one) for one in needs.modules) for name, needs in environments.PEERS.items()}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARMONY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _program(source: str, shape: list[int], carried: str, logits: str, weight: tuple[int, ...], stride: int) -> bytes:
    """A convolution, and a linear layer over the means of its planes."""
    random, planes, side = np.random.default_rng(0), weight[0], 7
    constants = {"w": weight, "head": (3, planes), "bias": (3,)}
    pads = [0] * 4 if stride > 1 else [1] * 4
    nodes = [
        helper.make_node("Conv", [source, "w"], ["raw"], strides=[stride] * 2, pads=pads),
        helper.make_node("Relu", ["raw"], [carried]),
        helper.make_node("GlobalAveragePool", [carried], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head", "bias"], [logits], transB=1),
    ]
    outputs = {carried: [1, planes, side, side], logits: [1, 3]}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, one) for name, one in outputs.items()],
        [numpy_helper.from_array(random.normal(size=one).astype(np.float32), name) for name, one in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


@pytest.fixture(scope="module")
def bundle(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net that every peer can read: the federation's manifest over two convolutions."""
    folder = tmp_path_factory.mktemp("peers") / "client-000"
    with sealing(folder) as draft:
        first = _program("image", [1, 1, 28, 28], "hidden", "logits1", (8, 1, 4, 4), 4)
        (draft / "exit1.onnx").write_bytes(first)
        (draft / "exit2.onnx").write_bytes(_program("hidden", [1, 8, 7, 7], "feature", "logits2", (2, 8, 3, 3), 1))
        (draft / VECTORS).write_bytes((federation.devices[0] / VECTORS).read_bytes())
        seal(draft, open_device_bundle(federation.devices[0]))
    return folder


def _settings(bundle: Path, **changes: object) -> PeersSettings:
    return PeersSettings.model_validate({"bundle": bundle, "rounds": 2, "count": 3, "images": 2} | changes)


def test_what_is_here_is_timed_and_what_is_not_is_named(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "peers.json"
    words = [str(bundle), "--rounds", "2", "--count", "3", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["harmony", "bench", "peers", *words])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    found = PeersBench.model_validate_json(out.read_bytes())
    assert found.digest == digest_of(bundle)
    costs = {one.name: one for one in found.runtimes}
    assert set(costs) == {"harmony onnxruntime", "onnxruntime"} | {name for name in ("openvino", "ncnn") if _HERE[name]}
    for one in costs.values():
        assert one.exit1_ms.n == one.exit2_ms.n == 2
        assert one.exit1_ms.min > 0
        assert one.start_cpu_s > 0
        assert one.peak_bytes > 10 << 20
        assert one.difference <= 1e-3
    assert costs["harmony onnxruntime"].difference == 0
    reasons = found.skipped
    assert "(export it with --format onnx,executorch)" in reasons["executorch"]
    assert reasons["torch"] == reasons["litert"] == "needs the network itself (name its run with --run)"
    for name in ("openvino", "ncnn"):
        assert (name in reasons) != _HERE[name]
        assert _HERE[name] or f"pip install {name}" in reasons[name]
    printed = capsys.readouterr().out
    assert "harmony onnxruntime" in printed
    assert "not run: torch: needs the network" in printed


@pytest.mark.skipif(not _HERE["ncnn"], reason="ncnn is not installed here: pip install ncnn pnnx")
def test_a_real_peer_answers_as_ours(bundle: Path) -> None:
    found = {one.name: one for one in run.bench_peers(_settings(bundle)).runtimes}
    assert 0 < found["ncnn"].difference < 1e-4
    assert found["ncnn"].version


def test_a_runtime_that_answers_otherwise_or_ends_is_not_timed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        "from harmony.bench.peers import worker\n"
        "def wrong(folder):\n"
        "    loaded = worker.plain_onnxruntime(folder)\n"
        "    return loaded._replace(exit2=lambda hidden: [1.01 * one for one in loaded.exit2(hidden)])\n"
        "def broken(folder):\n"
        "    raise RuntimeError('no such processor')\n"
        "worker.RUNTIMES = {**worker.RUNTIMES, 'onnxruntime': wrong, 'executorch': broken}\n"
        "worker.main()\n"
    )
    monkeypatch.setattr(run, "WORKER", worker)
    here = Path(sys.executable)
    runtimes = {name: lambda: here for name in (run.REFERENCE, "onnxruntime", "executorch")}
    monkeypatch.setattr(run, "_runtimes", lambda *given: runtimes)
    found = run.bench_peers(_settings(bundle))
    assert [one.name for one in found.runtimes] == [run.REFERENCE]
    assert found.skipped == {
        "onnxruntime": "answers otherwise: an output is off by 0.01 of its largest value",
        "executorch": "its process ended with code 1: RuntimeError: no such processor",
    }


def test_a_runtime_that_does_not_get_ready_is_ended(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(run, "WORKER", worker)
    monkeypatch.setattr(run, "_START_SECONDS", 0.5)
    with pytest.raises(EngineError, match="its process ended with code -9: it said nothing"):
        run.bench_peers(_settings(bundle))


def test_bundles_that_cannot_be_compared(bundle: Path, tmp_path: Path) -> None:
    source, small = bundle, tmp_path / "small"
    manifest = open_device_bundle(source)
    with sealing(small) as draft:
        for name in manifest.files:
            (draft / name).write_bytes((source / name).read_bytes())
        seal(draft, manifest.model_copy(update={"precision": "int8"}))
    with pytest.raises(ConfigError, match="ONNX files of fp32"):
        run.bench_peers(_settings(small))
    with pytest.raises(ConfigError, match=r"was not exported from this run .*leave --run out"):
        run.bench_peers(_settings(source, run=tmp_path))


def _wheel(folder: Path, name: str) -> Path:
    """A package with one empty module."""
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]))
    return path


def test_a_missing_peer_is_installed_if_that_is_asked_for(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = {
        "mine": Needs((str(_wheel(tmp_path, "peer_of_mine")),), ("peer_of_mine",)),
        "gone": Needs((str(tmp_path / "gone-1.0-py3-none-any.whl"),), ("gone_module",)),
    }
    monkeypatch.setattr(environments, "PEERS", needs)
    with pytest.raises(EngineUnavailable, match=r"is not installed .pip install "):
        environment("mine", install=False)
    assert not empty_cache.exists()
    for _ in range(2):  # the second time it is there
        found = environment("mine", install=True)
        subprocess.run([str(found.python), "-c", "import peer_of_mine"], check=True)
        assert (found.packages / "peer_of_mine").is_dir()
    assert environment("mine", install=False) == found
    with pytest.raises(EngineUnavailable, match="cannot be installed: ") as error:
        environment("gone", install=True)
    assert "\n" not in str(error.value)
