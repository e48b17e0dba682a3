"""`harmony demo --fast`: the whole story with real parts, and what an interruption leaves behind (nothing)."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harmony.bench.demo import DemoResult
from harmony.bench.result_files import JSON_FILE, read_result

COMMAND = [sys.executable, "-m", "harmony.cli.main", "demo", "--fast"]


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=240, check=False, cwd=cwd)


def descendants(pid: int) -> set[int]:
    """Processes below `pid`, which carry on under other parents if it dies: so collect them while it lives."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = set(), [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found.update(below)
        todo += below
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    cwd = tmp_path_factory.mktemp("demo")
    return cwd, run(cwd)


def test_it_tells_the_whole_story(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    cwd, done = finished
    assert done.returncode == 0, done.stderr
    out = cwd / "runs" / "demo"
    assert [path.name for path in out.parent.iterdir()] == ["demo"]
    assert {path.name for path in out.iterdir()} >= {"results.json", "results.csv", "report.html", "bundles", "harmony"}
    result = read_result(out / JSON_FILE, DemoResult)
    assert list(result.curves) == ["splitgp", "harmony"]
    assert {one.bundle for one in result.parity} == {"client-000", "client-001", "cloud"}
    assert all(one.max_error < 1e-3 for one in result.parity)
    for text in ("Accuracy (%)", "splitgp", "harmony", "What devices know at ρ = 1", "Against its limits"):
        assert text in done.stdout
    assert done.stdout.endswith("report: runs/demo/report.html\n")


def test_devices_ran_without_torch_and_asked_the_cloud(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    result = read_result(finished[0] / "runs/demo" / JSON_FILE, DemoResult)
    assert [one.name for one in result.bench.bundles] == ["client-000", "client-001"]
    for one in result.bench.bundles:
        assert not one.process.torch_loaded
        assert one.hardest.degraded == 0
        assert one.hardest.accuracy.oracle is not None
        assert one.predictions
    assert any(one.hardest.cloud > 0 and one.wire.request is not None for one in result.bench.bundles)
    assert result.bench.settings.bundles[0] == Path("runs/demo/bundles/client-000")


def test_again_gives_the_same_accuracies_in_the_same_place(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    cwd, _ = finished

    def accuracies() -> Any:
        result = read_result(cwd / "runs/demo" / JSON_FILE, DemoResult)
        return result.curves, [one.mixes for one in result.bench.bundles]

    before = accuracies()
    done = run(cwd, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["format"] == "harmony-demo"
    assert accuracies() == before
    assert [path.name for path in (cwd / "runs").iterdir()] == ["demo"]


def test_another_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = run(tmp_path, "--out", "mine")
    assert done.returncode == 2
    assert "RunExists: mine: holds something else than results of harmony-demo" in done.stderr


@pytest.mark.parametrize(("number", "stage"), [(signal.SIGINT, "devices"), (signal.SIGTERM, "training")])
def test_an_interruption_leaves_no_process_and_no_folder(number: signal.Signals, stage: str, tmp_path: Path) -> None:
    # Tests that a shell runs in the background inherit "ignore Ctrl-C"; a signal with a handler is a child's own again.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen([*COMMAND], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    signal.signal(signal.SIGINT, before)
    try:
        draft = _wait(lambda: next(iter((tmp_path / "runs").glob(".demo.*.part")), None), child)
        if stage == "devices":  # the service and a device are running by then
            _wait(lambda: len(descendants(child.pid)) >= 2 and (draft / "bundles" / "client-001").exists(), child)
        below = descendants(child.pid)
        child.send_signal(number)
        assert child.wait(60) == 130
    finally:
        child.kill()
        child.wait()
    deadline = time.monotonic() + 10  # whoever was below a child that is gone is told so, and needs a moment to end
    while left := [pid for pid in below if alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
    assert list((tmp_path / "runs").iterdir()) == []


def _wait(condition: Any, child: subprocess.Popen[bytes]) -> Any:
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert child.poll() is None, "the demo ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
