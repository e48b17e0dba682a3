"""Gates beside each other, on a run that is really trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harmony.core.config import TrainConfig, make_config
from harmony.core.data import Dataset
from harmony.train import train
from harmony.train.answers import Answers
from harmony.train.gates import GATES, GateJudgement, Memory, judge_gates


@pytest.fixture(scope="module")
def spread() -> Answers:
    """Two images: the first beside class 0 in every respect, the second beside class 2, which is foreign."""
    logits = np.array([[8.0, 0.0], [0.3, 0.2]], np.float32)
    of_all = np.array([[8.0, 0.0, 0.0], [0.0, 0.0, 8.0]], np.float32)
    embedding = np.array([[2.0, 0.0], [0.0, 0.5]], np.float32)
    return Answers(logits, logits, of_all, of_all, embedding, of_all)


@pytest.mark.parametrize("name", GATES)
def test_every_gate_is_larger_for_an_image_of_an_own_class(name: str, spread: Answers) -> None:
    prototypes = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], np.float32)
    memory = Memory(np.array([[1.0, 0.0], [0.8, 0.6]], np.float32), prototypes, np.array([0, 1]))
    first, second = GATES[name](spread, memory)
    assert first > second


def test_fusion_keeps_the_clouds_mass_on_foreign_classes_and_shares_out_the_rest_as_the_device_does(
    spread: Answers,
) -> None:
    fused = spread.fused(np.array([0, 1]))
    assert fused.sum(1) == pytest.approx([1, 1], abs=1e-6)
    assert fused[1, 2] == pytest.approx(np.exp(8) / (np.exp(8) + 2), abs=1e-6)
    assert fused[0, 0] / fused[0, 1] == pytest.approx(np.exp(8), rel=1e-3)


def judged(config: TrainConfig, images: Dataset, out: Path) -> dict[str, GateJudgement]:
    return {one.name: one for one in judge_gates(train(config, out, dataset=images), images)}


def test_all_gates_are_judged_on_the_same_images_and_the_shared_one_needs_the_method_that_trains_it(
    config: TrainConfig, images: Dataset, tmp_path: Path
) -> None:
    ours = judged(config, images, tmp_path / "ours")
    rival = {"method": "splitgp", "exits": {"score": "entropy", "pass1": 1.0}}
    theirs = judged(make_config(config.model_dump(mode="json") | rival), images, tmp_path / "theirs")
    assert set(ours) == set(GATES)
    assert set(theirs) == set(GATES) - {"own_mass"}
    for one in (*ours.values(), *theirs.values()):
        assert 0 <= one.auroc <= 1
        assert 0 <= one.overall <= 1
    assert ours["own_mass"].auroc != ours["entropy"].auroc
