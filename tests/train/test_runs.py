"""Runs: folders, resuming after a kill, damage, divergence."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harmony.core.checkpoint import open_checkpoint
from harmony.core.config import TrainConfig, make_config, save_config
from harmony.core.data import Dataset
from harmony.core.errors import ArtifactMissing, Diverged, RunError, RunExists, StorageError
from harmony.core.tokens import make_token_key
from harmony.train import Progress, resumed_config, train
from harmony.train.state import latest_state, save_state

METHODS = ["harmony", "splitgp"]

# A run in a process of its own that is killed (SIGKILL) in a given place. argv: config, folder, images, place, count.
KILLED = """
import os, signal, sys
from pathlib import Path
import harmony.train.state as state
from harmony.core.config import load_config
from harmony.core.data import load
from harmony.train import train

config, out, images, place, count = sys.argv[1:]
calls = 0

def dying(*_):
    global calls
    calls += 1
    if calls == int(count):
        os.kill(os.getpid(), signal.SIGKILL)

if place == "while a state is written":
    whole = state.seal
    state.seal = lambda *given: (dying(), whole(*given))[1]
listener = (lambda progress: progress.losses and dying()) if place == "after a round" else (lambda progress: None)
train(load_config(Path(config)), Path(out), dataset=load(images), on_progress=listener)
"""


def configured(method: str, config: TrainConfig) -> TrainConfig:
    changed = config.model_dump(mode="json") | {"method": method}
    if method == "splitgp":
        changed |= {"exits": {"score": "entropy", "pass1": 1.0}}
    return make_config(changed)


@pytest.fixture
def saved_images(images: Dataset, tmp_path: Path) -> Path:
    path = tmp_path / "images.npz"
    np.savez(path, x_train=images.x_train, y_train=images.y_train, x_test=images.x_test, y_test=images.y_test)
    return path


@pytest.mark.parametrize("place", ["after a round", "while a state is written"])
@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_gives_the_same_bits(
    method: str, place: str, config: TrainConfig, saved_images: Path, tmp_path: Path
) -> None:
    from harmony.core.data import load

    config = configured(method, config)
    save_config(config, tmp_path / "config.toml")
    whole, broken = tmp_path / "whole" / "run", tmp_path / "broken" / "run"
    train(config, whole, dataset=load(str(saved_images)))
    arguments = [str(tmp_path / "config.toml"), str(broken), str(saved_images), place, "3"]
    died = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, *arguments], check=False)
    assert died.returncode == -9
    assert not (broken / "checkpoint").exists()
    found = latest_state(broken)
    assert found is not None
    assert found[0].round == (3 if place == "after a round" else 2)
    train(resumed_config(broken), broken, resume=True, dataset=load(str(saved_images)))
    names = {path.name for path in (whole / "checkpoint").iterdir()}
    assert names == {path.name for path in (broken / "checkpoint").iterdir()}
    for name in names:
        assert (whole / "checkpoint" / name).read_bytes() == (broken / "checkpoint" / name).read_bytes(), name


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(
    config: TrainConfig, images: Dataset, tmp_path: Path
) -> None:
    def seal(folder: str, seed: int) -> str:
        out = tmp_path / folder / "run"
        train(config.model_copy(update={"seed": seed}), out, dataset=images)
        return (out / "checkpoint" / "manifest.sha256").read_text()

    assert seal("a", 0) == seal("b", 0) != seal("c", 1)


@pytest.mark.parametrize("method", METHODS)
def test_losses_fall(method: str, config: TrainConfig, images: Dataset, tmp_path: Path) -> None:
    config = configured(method, config.model_copy(update={"rounds": 12, "checkpoint_every": 12}))
    seen: list[Progress] = []
    train(config, tmp_path / "run", dataset=images, on_progress=seen.append)
    assert [progress.done for progress in seen] == list(range(13))
    assert seen[-1].losses["server"] < seen[1].losses["server"]


def test_a_run_folder_that_exists_is_left_alone(config: TrainConfig, images: Dataset, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(RunExists, match="--resume"):
        train(config, tmp_path / "run", dataset=images)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_resuming_nothing_another_config_or_other_images_is_refused(
    config: TrainConfig, images: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactMissing, match="no run here"):
        train(config, tmp_path / "none", resume=True, dataset=images)
    train(config, tmp_path / "run", dataset=images)
    with pytest.raises(RunError, match="another config"):
        train(config.model_copy(update={"seed": 9}), tmp_path / "run", resume=True, dataset=images)
    for folder in (tmp_path / "run" / "checkpoint").iterdir():
        folder.unlink()
    (tmp_path / "run" / "checkpoint").rmdir()
    other = Dataset(
        "other",
        images.x_train[::-1].copy(),
        images.y_train[::-1].copy(),
        images.x_test,
        images.y_test,
        images.class_names,
    )
    with pytest.raises(RunError, match="other images"):
        train(config, tmp_path / "run", resume=True, dataset=other)


def test_a_damaged_state_is_passed_over_for_the_one_before(
    config: TrainConfig, images: Dataset, tmp_path: Path
) -> None:
    train(config, tmp_path / "run", dataset=images)
    states = sorted((tmp_path / "run" / "state").iterdir())
    assert [path.name for path in states] == ["round-000003", "round-000004"]
    for folder, left in ((states[1], 3), (states[0], None)):
        tensors = folder / "state.safetensors"
        content = bytearray(tensors.read_bytes())
        content[len(content) // 2] ^= 1
        tensors.write_bytes(content)
        if left is None:
            with pytest.raises(RunError, match="no state can be read"):
                latest_state(tmp_path / "run")
        else:
            found = latest_state(tmp_path / "run")
            assert found is not None
            assert found[0].round == left


@pytest.mark.parametrize(
    ("method", "weight", "culprit"),
    [
        ("harmony", "shared/resnet/exit1.gate.weight", "the gate1 loss of client 0"),
        ("harmony", "back_end/classify.weight", "the server loss of client 0"),
        ("splitgp", "client/2/exit2.head.weight", "the exit2 loss of client 2"),
    ],
)
def test_divergence_names_round_term_and_client_and_keeps_the_last_good_state(
    method: str, weight: str, culprit: str, config: TrainConfig, images: Dataset, tmp_path: Path
) -> None:
    """A weight that has overflowed, as after a step too large: normalised networks of this size do not get there."""
    config = configured(method, config)
    train(config, tmp_path / "whole", dataset=images)
    found = latest_state(tmp_path / "whole")
    assert found is not None
    manifest, tensors = found
    tensors[weight][:] = float("inf")
    run = tmp_path / "run"
    run.mkdir()
    save_config(config, run / "config.toml")
    save_state(run, manifest.model_copy(update={"round": 2}), tensors)
    with pytest.raises(Diverged, match=f"{culprit} is no longer finite in round 3") as raised:
        train(config, run, resume=True, dataset=images)
    assert "\n" not in str(raised.value)
    assert not (run / "checkpoint").exists()
    kept = latest_state(run)
    assert kept is not None
    assert kept[0].round == 2


def test_a_full_disk_is_a_named_error_and_the_run_goes_on_later(
    config: TrainConfig, saved_images: Path, tmp_path: Path
) -> None:
    """The limit on file sizes is the one full disk that needs no root: a write past it fails like ENOSPC."""
    from harmony.core.data import load

    save_config(config, tmp_path / "config.toml")
    program = (
        "import resource, signal, sys; from pathlib import Path; from harmony.core.config import load_config\n"
        "from harmony.core.data import load; from harmony.train import train\n"
        "from harmony.core.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); images = load(sys.argv[3])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: train(load_config(Path(sys.argv[1])), Path(sys.argv[2]), dataset=images)\n"
        "except StorageError as error: print(error); sys.exit(2)\n"
    )
    arguments = [str(tmp_path / "config.toml"), str(tmp_path / "run"), str(saved_images)]
    full = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert full.returncode == 2, full.stderr
    assert "round-000001" in full.stdout
    assert not list((tmp_path / "run" / "state").glob("round-*"))
    train(config, tmp_path / "run", resume=True, dataset=load(str(saved_images)))
    assert open_checkpoint(tmp_path / "run" / "checkpoint").round == config.rounds


def test_a_folder_that_cannot_be_made_is_a_storage_error(config: TrainConfig, images: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="run"):
        train(config, tmp_path / "file" / "run", dataset=images)


def test_a_finished_run_is_checked_and_kept(config: TrainConfig, images: Dataset, tmp_path: Path) -> None:
    checkpoint = train(config, tmp_path / "run", dataset=images)
    before = (checkpoint / "manifest.sha256").read_bytes()
    assert train(config, tmp_path / "run", resume=True, dataset=images) == checkpoint
    assert (checkpoint / "manifest.sha256").read_bytes() == before


def test_a_run_is_not_resumed_with_another_token_key(config: TrainConfig, images: Dataset, tmp_path: Path) -> None:
    """Its back end would answer in tokens that nobody knows any more."""
    key = tmp_path / "a.key"
    make_token_key(key)
    keyed = make_config(config.model_dump(mode="json") | {"tokens": {"key_file": str(key)}})
    train(keyed, tmp_path / "run", dataset=images)
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    key.unlink()
    make_token_key(key)
    with pytest.raises(RunError, match=r"another token key \(bring back the old tokens\.key_file"):
        train(keyed, tmp_path / "run", resume=True, dataset=images)
