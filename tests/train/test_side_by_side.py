"""Runs in processes of their own: the same bits, their errors, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from harmony.core.config import TrainConfig, save_config
from harmony.core.data import Dataset, load
from harmony.core.errors import RunError, RunExists
from harmony.train import Progress, train, train_side_by_side


@pytest.fixture
def stored(config: TrainConfig, images: Dataset, tmp_path: Path) -> TrainConfig:
    """The small config over images that another process can load."""
    path = tmp_path / "images.npz"
    np.savez(path, x_train=images.x_train, y_train=images.y_train, x_test=images.x_test, y_test=images.y_test)
    return config.model_copy(update={"data": config.data.model_copy(update={"name": str(path)})})


def test_side_by_side_gives_the_bits_of_a_run_alone(stored: TrainConfig, tmp_path: Path) -> None:
    seen: list[tuple[str, Progress]] = []
    jobs = {f"seed {seed}": (stored.model_copy(update={"seed": seed}), tmp_path / str(seed) / "run") for seed in (0, 1)}
    seconds = train_side_by_side(jobs, lambda name, progress: seen.append((name, progress)))
    assert set(seconds) == set(jobs)
    for name, (config, out) in jobs.items():
        assert [progress.done for one, progress in seen if one == name] == list(range(config.rounds + 1))
        alone = train(config, tmp_path / "alone" / name / "run", dataset=load(config.data.name))
        assert (alone / "manifest.sha256").read_bytes() == (out / "checkpoint" / "manifest.sha256").read_bytes()


def test_an_error_of_one_is_raised_by_name_and_ends_the_others(stored: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    endless = stored.model_copy(update={"rounds": 1_000_000})
    jobs = {"endless": (endless, tmp_path / "endless"), "taken": (stored, tmp_path / "taken")}
    with pytest.raises(RunExists, match="taken: this run folder is there already"):
        train_side_by_side(jobs)
    assert not (tmp_path / "endless" / "checkpoint").exists()


def test_a_killed_process_is_named(stored: TrainConfig, tmp_path: Path) -> None:
    def kill(name: str, progress: Progress) -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)

    with pytest.raises(RunError, match="of one was ended by signal 9"):
        train_side_by_side({"one": (stored.model_copy(update={"rounds": 1_000_000}), tmp_path / "run")}, kill)


def test_a_killed_parent_takes_its_runs_along(stored: TrainConfig, tmp_path: Path) -> None:
    save_config(stored.model_copy(update={"rounds": 1_000_000}), tmp_path / "config.toml")
    program = (
        "import sys; from pathlib import Path; from harmony.core.config import load_config\n"
        "from harmony.train import train_side_by_side\n"
        "if __name__ == '__main__':\n"
        "    train_side_by_side({'a': (load_config(Path(sys.argv[1])), Path(sys.argv[2]))},"
        " lambda *_: print('going', flush=True))\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(program)
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path / "config.toml", tmp_path / "run"], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "going\n"
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(_runs(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
