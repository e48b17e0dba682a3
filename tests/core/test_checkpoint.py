"""Checkpoints: whole or not there, every byte checked, every record consistent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from harmony.core.checkpoint import (
    BACK_END,
    CheckpointManifest,
    Tensors,
    checkpoint_folder,
    client_file,
    load_tensors,
    open_checkpoint,
    save_checkpoint,
)
from harmony.core.errors import ArtifactCorrupt, ArtifactMissing, RunExists, StorageError

RNG = np.random.default_rng(0)
EXITS = [{"name": name, "score": "own_mass", "threshold": 0.0} for name in ("exit1", "exit2")]
CLIENT: dict[str, Any] = {
    "index": 0,
    "architecture": {"family": "resnet", "width": 16, "depth": 1},
    "classes": {"names": ["a", "b"], "own": [1], "tokens": [1, 0]},
    "exits": EXITS,
    "train_images": 10,
    "holdout_images": 2,
}
MANIFEST: dict[str, Any] = {
    "harmony_version": "0.1.0",
    "run": "r",
    "method": "harmony",
    "round": 4,
    "config": {"rounds": 4, "nested": {"list": [1, 2.5, None, "x"]}},
    "dataset": "d",
    "image": {"height": 28, "width": 28, "channels": 1, "mean": [0.5], "std": [0.5]},
    "feature": {"channels": 32, "height": 4, "width": 4},
    "back_end_width": 32,
    "gate": True,
    "clients": [CLIENT, CLIENT | {"index": 1}],
}
BACK: Tensors = {"w": RNG.normal(size=(3, 4)).astype(np.float32), "half": RNG.normal(size=5).astype(np.float16)}
CLIENTS: dict[int, Tensors] = {
    0: {"a.weight": RNG.normal(size=(2, 2)).astype(np.float32), "count": np.array(7)},
    1: {"b": RNG.normal(size=(4, 6)).astype(np.float32).T[::2]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "run" / "checkpoint", CheckpointManifest.model_validate(MANIFEST), BACK, CLIENTS)
    return tmp_path / "run" / "checkpoint"


def test_a_checkpoint_keeps_every_bit(folder: Path) -> None:
    manifest = open_checkpoint(folder)
    assert manifest.config == MANIFEST["config"]
    assert manifest == CheckpointManifest.model_validate(MANIFEST | {"files": manifest.files})
    for name, tensors in {BACK_END: BACK, client_file(0): CLIENTS[0], client_file(1): CLIENTS[1]}.items():
        found = load_tensors(folder / name)
        assert set(found) == set(tensors)
        for key, value in tensors.items():
            assert found[key].dtype == value.dtype
            assert found[key].shape == value.shape
            np.testing.assert_array_equal(found[key], value)


def test_a_checkpoint_is_never_overwritten(folder: Path) -> None:
    before = (folder / BACK_END).read_bytes()
    with pytest.raises(RunExists, match="there already"):
        save_checkpoint(folder, CheckpointManifest.model_validate(MANIFEST), {}, {})
    assert (folder / BACK_END).read_bytes() == before


def test_one_changed_byte_of_weights_is_found(folder: Path) -> None:
    path = folder / client_file(1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=r"client-001\.safetensors: was changed after it was sealed"):
        open_checkpoint(folder)


def test_a_client_without_a_file_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", CheckpointManifest.model_validate(MANIFEST), BACK, {0: CLIENTS[0]})
    with pytest.raises(ArtifactCorrupt, match=r"manifest\.json: client 1: names 'client-001\.safetensors'"):
        open_checkpoint(tmp_path / "c")


def test_a_failing_disk_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(StorageError, match=r"c: cannot be written: No space left on device"):
        save_checkpoint(tmp_path / "c", CheckpointManifest.model_validate(MANIFEST), BACK, CLIENTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clients": []}, "at least 1"),
        ({"clients": [CLIENT, CLIENT]}, "same index"),
        ({"clients": [CLIENT | {"exits": EXITS[::-1]}]}, "exit1, then exit2"),
        ({"clients": [CLIENT | {"exits": EXITS[:1]}]}, "exits"),
        ({"clients": [CLIENT | {"index": -1}]}, "greater than or equal to 0"),
        ({"gate": False}, "needs a gate head"),
        ({"round": -1}, "greater than or equal to 0"),
        ({"back_end_width": 0}, "greater than or equal to"),
    ],
)
def test_a_manifest_is_consistent(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CheckpointManifest.model_validate(MANIFEST | change)


def test_a_run_knows_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    assert checkpoint_folder(folder.parent) == folder
    assert checkpoint_folder(folder) == folder
    assert checkpoint_folder(tmp_path / "nothing") == tmp_path / "nothing"
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.toml").write_text("")
    with pytest.raises(
        ArtifactMissing, match=r"unfinished: the run has not finished \(harmony train --out .*--resume\)"
    ):
        checkpoint_folder(unfinished)
    with pytest.raises(ArtifactMissing, match="cannot be read: File name too long"):
        checkpoint_folder(Path("x" * 300))


def test_file_names_sort_like_their_clients() -> None:
    assert [client_file(index) for index in (0, 12, 1234)] == [
        "client-000.safetensors",
        "client-012.safetensors",
        "client-1234.safetensors",
    ]
