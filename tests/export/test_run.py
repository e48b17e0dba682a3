"""Whole exports: what is in a bundle answers as the checkpoint does, and nothing half-written is ever taken for one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

from harmony.core.bundle import VECTORS, open_cloud_bundle, open_device_bundle, read_vectors
from harmony.core.checkpoint import open_checkpoint
from harmony.core.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    ConfigError,
    DataMissing,
    EngineUnavailable,
    HarmonyError,
    ParityFailed,
    RunExists,
)
from harmony.core.models import BackEnd, FrontEnd
from harmony.export import ExportReport, export_run
from harmony.export import bundles as bundles_module
from harmony.export.lowering import _blueprint, blueprint, lower, lowering_anew
from harmony.export.networks import front_end, shape_of
from harmony.export.parity import run_executorch, run_onnx
from harmony.export.run import vector_images

MakeRun = Callable[..., Path]
Exported = tuple[Path, list[ExportReport]]
OUTPUTS = {"exit1": ("hidden", "logits1", "gate1"), "exit2": ("feature", "logits2", "gate2")}


def test_bundles_hold_what_their_manifests_promise(exported: Exported, tiny_run: Path) -> None:
    out, reports = exported
    assert sorted(path.name for path in out.iterdir()) == ["client-000", "client-001", "cloud"]
    assert [report.client for report in reports] == [0, 1, None]
    checkpoint = open_checkpoint(tiny_run / "checkpoint")
    for client in (0, 1):
        manifest = open_device_bundle(out / f"client-{client:03d}")
        assert set(manifest.engines) == {"onnxruntime", "executorch"}
        assert manifest.classes == checkpoint.clients[client].classes
        assert manifest.exits == checkpoint.clients[client].exits
        assert (manifest.gate, manifest.feature) == (True, checkpoint.feature)
    assert open_cloud_bundle(out / "cloud").tokens == 10
    assert len({report.parameters for report in reports[:2]}) == 1


def test_report_says_parity_sizes_and_that_all_is_delegated(exported: Exported) -> None:
    for report in exported[1]:
        for engine in report.engines:
            assert 0 < engine.max_error < 1e-4
            assert engine.delegated == (1.0 if engine.engine == "executorch" else None)
            for name, size in engine.files.items():
                assert (report.bundle / name).stat().st_size == size


def test_vectors_are_the_checkpoints_own_answers_by_own_rows(exported: Exported, tiny_run: Path) -> None:
    """Against a network built here from the raw tensors, with all rows of its heads."""
    manifest = open_checkpoint(tiny_run / "checkpoint")
    vectors = read_vectors(exported[0] / "client-001" / VECTORS)
    record = manifest.clients[1]
    network = FrontEnd(record.architecture, manifest.image, manifest.feature, outputs=10, gate=10).eval()
    tensors = load_file(tiny_run / "checkpoint" / "client-001.safetensors")
    network.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    with torch.no_grad():
        out = network(torch.from_numpy(vectors["image"]))
    for name in ("logits1", "logits2"):
        rows = getattr(out, name)[:, list(record.classes.own)]
        torch.testing.assert_close(torch.from_numpy(vectors[name]), rows, atol=1e-5, rtol=1e-4)
    for name in ("gate1", "gate2", "feature"):
        torch.testing.assert_close(torch.from_numpy(vectors[name]), getattr(out, name), atol=1e-5, rtol=1e-4)


def test_outputs_depend_on_the_input_and_on_the_client(exported: Exported) -> None:
    first, second = (read_vectors(exported[0] / f"client-00{client}" / VECTORS) for client in (0, 1))
    for name, values in first.items():
        assert float(values.std(axis=0).max()) > 1e-3, f"{name} is the same for every image"
    assert np.array_equal(first["image"], second["image"])
    assert float(np.abs(first["logits2"] - second["logits2"]).max()) > 1e-2


def test_onnx_files_stand_alone_with_the_promised_ports(exported: Exported) -> None:
    folder = exported[0] / "client-000"
    for role, outputs in OUTPUTS.items():
        model = onnx.load(folder / f"{role}.onnx", load_external_data=False)
        assert [port.name for port in model.graph.output] == list(outputs)
        assert [port.name for port in model.graph.input] == ["image" if role == "exit1" else "hidden"]
        assert not [one for one in model.graph.initializer if one.external_data]
        assert all(node.domain in ("", "ai.onnx") for node in model.graph.node)


def test_no_file_tells_where_it_was_made(exported: Exported) -> None:
    """Exporters note stack traces for debugging: paths of the machine, and more bytes than a small network has."""
    here = [str(Path(__file__).resolve().parents[2]), sys.prefix, "site-packages", ".py"]
    for path in sorted(exported[0].rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            assert not [text for text in here if text.encode() in content], path


def test_back_end_answers_any_batch_with_probabilities(exported: Exported, tiny_run: Path) -> None:
    manifest = open_checkpoint(tiny_run / "checkpoint")
    session = onnxruntime.InferenceSession(exported[0] / "cloud" / "back_end.onnx")
    network = BackEnd(manifest.feature, width=8, tokens=10).eval()
    tensors = load_file(tiny_run / "checkpoint" / "back_end.safetensors")
    network.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    for count in (1, 3, 8):
        feature = np.random.default_rng(count).random((count, *manifest.feature.shape), np.float32)
        (found,) = session.run(["probabilities"], {"feature": feature})
        with torch.no_grad():
            expected = torch.softmax(network(torch.from_numpy(feature)), 1).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_a_filled_template_answers_as_direct_lowering(tiny_run: Path, exported: Exported) -> None:
    """The .pte of client 1 came from a template; here the client itself is lowered."""
    folder = tiny_run / "checkpoint"
    manifest = open_checkpoint(folder)
    record = manifest.clients[1]
    network = front_end(manifest, record, load_file(folder / "client-001.safetensors"), folder)
    direct, delegated = lower(network, torch.zeros(1, 1, 28, 28), "executorch")
    assert delegated == 1
    filled = {"program": (exported[0] / "client-001" / "front_end.pte").read_bytes()}
    images = vector_images(manifest)
    one, other = (run_executorch(programs, images, OUTPUTS) for programs in (direct, filled))
    for name, values in one.items():
        assert np.array_equal(values, other[name]), name
    keys = [set(re.findall(rb"[0-9a-f]{64}", program)) for program in (direct["program"], filled["program"])]
    assert keys[0] == keys[1] != set()


def test_without_a_template_each_client_is_lowered(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harmony.export.lowering.number", lambda network: False)
    manifest = open_checkpoint(tiny_run / "checkpoint")
    with lowering_anew() as lowered:
        assert blueprint(manifest, (shape_of(manifest.clients[2]), "onnx")).template is None
        assert lowered == []
        (report, _) = export_run(tiny_run, tmp_path, clients=[2], formats=["onnx"])
    assert [(one.architecture, one.format) for one in lowered] == [("mobilenet-w8-d1", "onnx")]
    assert report.engines[0].max_error < 1e-4
    assert open_device_bundle(report.bundle).training is not None  # its heads are found all the same
    _blueprint.cache_clear()


def test_scores_that_need_no_gate_leave_it_out(run_maker: MakeRun, tmp_path: Path) -> None:
    run = run_maker(tmp_path / "run", gate=False)
    export_run(run, tmp_path / "out", clients=[2], formats=["onnx"])
    manifest = open_device_bundle(tmp_path / "out" / "client-002")
    assert not manifest.gate
    assert "gate1" not in read_vectors(tmp_path / "out" / "client-002" / VECTORS)


def test_an_export_again_keeps_what_is_whole_and_adds_what_is_missing(
    exported: Exported, tiny_run: Path, tmp_path: Path
) -> None:
    export_run(tiny_run, tmp_path, clients=[0], formats=["onnx"])
    kept = tmp_path / "client-000" / "manifest.json"
    before = kept.stat().st_ino, kept.stat().st_mtime_ns  # when it was last read may change
    seen: list[tuple[str, int, int]] = []
    reports = export_run(
        tiny_run, tmp_path, clients=[0, 2], formats=["onnx"], on_event=lambda *event: seen.append(event)
    )
    assert [report.kept for report in reports] == [True, False, True]
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == before
    assert [done for _, done, _ in seen] == list(range(1, seen[-1][2] + 1))


@pytest.mark.parametrize("foreign", ["other run", "other formats", "damaged", "a file"])
def test_anything_else_in_a_bundles_place_is_left_alone(
    foreign: str, tiny_run: Path, run_maker: MakeRun, tmp_path: Path
) -> None:
    out, run, place = tmp_path / "out", tiny_run, tmp_path / "out" / "client-000"
    if foreign == "a file":
        out.mkdir()
        place.write_text("mine")
    else:
        export_run(run, out, clients=[0], formats=["onnx"])
    if foreign == "other run":
        run = run_maker(tmp_path / "other", seed=1)
    if foreign == "damaged":
        (place / "exit1.onnx").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunExists, match=r"client-000.*--out"):
        export_run(run, out, clients=[0], formats=["executorch"] if foreign == "other formats" else ["onnx"])
    assert sorted(tmp_path.rglob("*")) == before


def test_parity_names_client_engine_and_output_and_nothing_is_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(programs: dict[str, bytes], images: np.ndarray) -> dict[str, np.ndarray]:
        found = run_onnx(programs, images)
        found["logits2"][3, 1] += 0.01
        return found

    monkeypatch.setattr(bundles_module, "run_onnx", wrong)
    with pytest.raises(ParityFailed, match=r"client 2: logits2: onnxruntime differs from PyTorch by 0\.01"):
        export_run(tiny_run, tmp_path, clients=[2], formats=["onnx"])
    assert [path.name for path in tmp_path.iterdir()] == ["cloud"]


def test_nan_is_no_parity(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(programs: dict[str, bytes], images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value * np.nan for name, value in run_onnx(programs, images).items()}

    monkeypatch.setattr(bundles_module, "run_onnx", wrong)
    with pytest.raises(ParityFailed, match="hidden"):
        export_run(tiny_run, tmp_path, clients=[2], formats=["onnx"])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"clients": [7]}, ConfigError, "client 7 is not in this run.*0, 1, 2"),
        ({"formats": ["tflite"]}, ConfigError, "'tflite' is no format.*onnx,executorch"),
        ({"formats": []}, ConfigError, "no format"),
    ],
)
def test_wrong_arguments(
    arguments: dict[str, list[int]], error: type[HarmonyError], words: str, tiny_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        export_run(tiny_run, tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="nothing"):
        export_run(tmp_path / "nothing", tmp_path / "out")


def test_an_edited_checkpoint(run_maker: MakeRun, tmp_path: Path) -> None:
    path = run_maker(tmp_path / "run") / "checkpoint" / "client-001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=r"client-001\.safetensors.*SHA-256"):
        export_run(tmp_path / "run", tmp_path / "out", formats=["onnx"])


def test_tensors_of_another_network(run_maker: MakeRun, tmp_path: Path) -> None:
    run = run_maker(tmp_path / "run", back_end_width=16)
    with pytest.raises(ArtifactCorrupt, match=r"back_end\.safetensors.*tensors are not those"):
        export_run(run, tmp_path / "out", clients=[0], formats=["onnx"])


def test_data_that_is_gone_and_noise_instead(run_maker: MakeRun, tmp_path: Path) -> None:
    config = {"data": {"name": str(tmp_path / "gone.npz")}}
    run = run_maker(tmp_path / "run", config=config)
    with pytest.raises(DataMissing, match=r"gone\.npz"):
        export_run(run, tmp_path / "out", clients=[2], formats=["onnx"])
    reports = export_run(run, tmp_path / "out", clients=[2], formats=["onnx"], noise=True)
    assert reports[0].engines[0].max_error < 1e-4


def test_executorch_missing_is_named(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(EngineUnavailable, match=r"pip install 'harmony-sfl\[executorch\]'"):
        export_run(tiny_run, tmp_path, clients=[2], formats=["executorch"])
    assert not (tmp_path / "client-002").exists()


def test_a_kill_leaves_only_whole_bundles_and_the_rest_can_follow(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = f"""
import os, pathlib, signal, harmony.core.sealed as sealed
from harmony.export import export_run, bundles
write = bundles.seal
def seal_then_die(folder, manifest, *keys):
    sealed_manifest = write(folder, manifest, *keys)
    if getattr(manifest, "client", None) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return sealed_manifest
bundles.seal = seal_then_die
export_run(pathlib.Path({str(tiny_run)!r}), pathlib.Path({str(out)!r}), formats=["onnx"])
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == ["client-000", "cloud"]
    open_device_bundle(out / "client-000")
    reports = export_run(tiny_run, out, formats=["onnx"])
    assert [report.kept for report in reports] == [True, False, False, True]
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_full_disk_is_named_and_leaves_no_bundle(tiny_run: Path, tmp_path: Path) -> None:
    """A limit of the file size stands for the full disk: the write of the first program fails half-way."""
    out = tmp_path / "out"
    program = f"""
import pathlib, resource, signal, sys
from harmony.core.errors import StorageError
from harmony.export import export_run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    export_run(pathlib.Path({str(tiny_run)!r}), pathlib.Path({str(out)!r}), formats=["onnx"])
except StorageError as error:
    sys.exit(str(error))
"""
    full = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120)
    assert full.returncode == 1
    assert "cannot be written" in full.stderr.splitlines()[-1]
    assert not list(out.glob("*"))
    assert not list(out.glob(".*"))


def test_workers_end_with_a_killed_parent(tiny_run: Path, tmp_path: Path) -> None:
    """Two processes lower; the parent dies; nobody is left."""
    script = tmp_path / "job.py"
    script.write_text(
        "import pathlib, sys\nfrom harmony.export import export_run\n"
        "if __name__ == '__main__':\n"
        f"    export_run(pathlib.Path({str(tiny_run)!r}), pathlib.Path({str(tmp_path / 'out')!r}), jobs=2)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    try:
        children = _wait_for(lambda: [pid for pid in _children(parent.pid) if _is_worker(pid)], at_least=2)
    finally:
        parent.kill()
        parent.wait()
    _wait_for(lambda: [1] if not any(_is_worker(pid) for pid in children) else [], at_least=1)


def _wait_for(look: Callable[[], list[int]], at_least: int) -> list[int]:
    for _ in range(600):
        found = look()
        if len(found) >= at_least:
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen within a minute")


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _is_worker(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (ProcessLookupError, FileNotFoundError):
        return False
