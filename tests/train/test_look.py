"""Models shown between rounds: which rounds, and that looking changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harmony.core.config import TrainConfig, make_config
from harmony.core.data import Dataset
from harmony.train import Look, Progress, train
from harmony.train.federation import Federation
from harmony.train.method import Trained


@pytest.mark.parametrize("method", ["harmony", "splitgp"])
def test_looking_changes_no_bit_of_the_outcome(
    method: str, config: TrainConfig, images: Dataset, tmp_path: Path
) -> None:
    exits = {"score": "entropy", "pass1": 1.0} if method == "splitgp" else {}
    config = make_config(config.model_dump(mode="json") | {"method": method, "exits": exits})
    shown: list[int] = []

    def show(done: int, trained: Trained, members: Federation) -> None:
        shown.append(done)
        torch.rand(3)  # a look may draw from torch's global stream
        assert len(trained.clients) == len(members.clients)

    checkpoints = [
        train(config, tmp_path / name / "run", dataset=images, look=look)
        for name, look in (("shown", Look(3, show)), ("unseen", None))
    ]
    assert shown == [0, 3, 4]
    seals = [(checkpoint / "manifest.sha256").read_bytes() for checkpoint in checkpoints]
    assert seals[0] == seals[1]


def test_a_resumed_run_is_shown_all_rounds_after_its_state(
    config: TrainConfig, images: Dataset, tmp_path: Path
) -> None:
    config = config.model_copy(update={"checkpoint_every": 2})
    seen: dict[int, float] = {}

    def show(done: int, trained: Trained, members: Federation) -> None:
        seen[done] = float(sum(abs(value).sum() for value in trained.back_end.values()))

    def stop(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    train(config, tmp_path / "whole", dataset=images, look=Look(1, show))
    unbroken, seen = seen, {}
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", dataset=images, look=Look(1, show), on_progress=stop)
    assert sorted(seen) == [0, 1, 2, 3]
    broken, seen = seen, {}
    train(config, tmp_path / "run", dataset=images, look=Look(1, show), resume=True)
    assert sorted(seen) == [3, 4]
    assert broken | seen == unbroken
