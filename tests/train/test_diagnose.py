"""Measures of representations on cases whose answer is known, and looks at models against the evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harmony.core.config import TrainConfig, make_config
from harmony.core.data import Dataset
from harmony.train import Look, evaluate, train
from harmony.train.diagnose import Midway, diagnose, diagnose_between, midway
from harmony.train.evaluate import ranking
from harmony.train.federation import Federation
from harmony.train.method import Trained
from harmony.train.similarity import linear_cka, mean_roc, principal_plane, probe
from harmony.train.test_images import test_images


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def test_cka_ignores_rotation_scale_and_offset(random: np.random.Generator) -> None:
    features = random.normal(size=(60, 12))
    rotation, _ = np.linalg.qr(random.normal(size=(12, 12)))
    assert linear_cka(features, 3 * features @ rotation + 5) == pytest.approx(1)
    assert linear_cka(features, features @ np.diag(np.arange(12.0))) < 0.99


def test_unrelated_features_have_no_cka_though_they_have_more_dimensions_than_inputs(
    random: np.random.Generator,
) -> None:
    """The plain estimate gives about 0.9 here."""
    first, second = random.normal(size=(2, 100, 1500))
    centred = [one - one.mean(0) for one in (first, second)]
    plain = [[np.square(a.T @ b).sum() for a in centred] for b in centred]
    assert plain[0][1] / np.sqrt(plain[0][0] * plain[1][1]) > 0.8
    assert abs(linear_cka(first, second)) < 0.05


def test_with_many_inputs_cka_is_the_plain_one(random: np.random.Generator) -> None:
    first = random.normal(size=(2000, 5))
    second = np.concatenate([first[:, :2], random.normal(size=(2000, 3))], 1)
    centred = [one - one.mean(0) for one in (first, second)]
    plain = [[np.square(a.T @ b).sum() for a in centred] for b in centred]
    assert linear_cka(first, second) == pytest.approx(plain[0][1] / np.sqrt(plain[0][0] * plain[1][1]), abs=0.01)


def test_a_network_that_says_the_same_of_everything_is_like_none(random: np.random.Generator) -> None:
    assert linear_cka(np.ones((20, 4), np.float32), random.normal(size=(20, 4))) == 0


def test_the_probe_finds_what_differs_and_only_that(random: np.random.Generator) -> None:
    images = random.normal(size=(400, 8))
    apart = np.stack([images, images + 2 * np.eye(8)[0]])
    assert probe(np.stack([images, images, images])) == pytest.approx(1 / 3)
    assert probe(apart) > 0.75
    assert probe(np.stack([images, images + 20])) == 1


def test_the_probe_is_asked_about_inputs_that_it_has_not_learnt(random: np.random.Generator) -> None:
    """More dimensions than inputs: what it learns by heart separates perfectly, and says nothing of others."""
    assert 0.3 < probe(random.normal(size=(2, 100, 300))) < 0.7


def test_the_plane_holds_the_largest_variances(random: np.random.Generator) -> None:
    hidden = random.normal(size=(300, 2)) * [4, 2]
    turn, _ = np.linalg.qr(random.normal(size=(10, 10)))
    plane = principal_plane(hidden @ turn[:2] + random.normal(size=(300, 10)) * 0.01)
    assert plane.shape == (300, 2)
    assert plane[:, 0].std() == pytest.approx(1)
    assert abs(np.corrcoef(plane[:, 0], hidden[:, 0])[0, 1]) > 0.98
    assert plane[:, 1].std() == pytest.approx(0.5, abs=0.1)


def test_the_mean_roc_is_between_the_clients(random: np.random.Generator) -> None:
    good, bad = (random.normal(middle, 1, 2000).astype(np.float32) for middle in (1, 0))
    perfect, worthless = np.arange(10.0) + 100, np.arange(10.0)
    one = mean_roc([good], [bad])
    assert np.trapezoid(one[:, 1], one[:, 0]) == pytest.approx(ranking(good, bad)[0], abs=0.01)
    assert mean_roc([perfect], [worthless])[:, 1].tolist() == [1.0] * 41
    both = mean_roc([perfect, worthless], [worthless, perfect])
    assert both[0].tolist() == [0, 0.5]
    assert both[-1].tolist() == [1, 1]


@pytest.mark.parametrize("method", ["splitgp", "local"])
def test_a_look_at_all_images_is_the_evaluation(
    method: str, config: TrainConfig, images: Dataset, tmp_path: Path
) -> None:
    """These methods do nothing at the end, so that the last look sees what the checkpoint holds."""
    plain = {"method": method, "exits": {"score": "entropy", "pass1": 1.0}, "rounds": 2}
    config = make_config(config.model_dump(mode="json") | plain)
    tests = test_images(config, images)
    looks: list[Midway] = []

    def show(done: int, trained: Trained, members: Federation) -> None:
        looks.append(midway(done, trained, members, tests, 100_000))

    checkpoint = train(config, tmp_path / "run", dataset=images, look=Look(2, show))
    mean = evaluate(checkpoint, images, rhos=(1.0,)).mean[0]
    last = looks[-1]
    assert last.round == 2
    assert last.client_id == pytest.approx(mean.client_id)
    assert last.server_id == pytest.approx(mean.server_id)
    assert last.server_ood == pytest.approx(mean.server_ood)
    assert looks[0].round == 0
    assert looks[0] != last


def test_architectures_are_compared_before_and_after(config: TrainConfig, images: Dataset, tmp_path: Path) -> None:
    tests = test_images(config, images)
    before = []

    def show(done: int, trained: Trained, members: Federation) -> None:
        if done == 0:
            before.append(diagnose_between(trained, members, tests))

    checkpoint = train(config, tmp_path / "run", dataset=images, look=Look(4, show))
    after, names = diagnose(checkpoint, tests), list(config.architectures)
    assert [(pair.first, pair.second) for pair in after.pairs] == [
        (names[a], names[b]) for a in range(4) for b in range(a + 1, 4)
    ]
    assert after.cka_cut == pytest.approx(np.mean([pair.cut for pair in after.pairs]))
    assert after.chance == 0.25
    assert after.probe is not None
    assert 0.25 <= after.probe <= 1
    assert before[0].pairs != after.pairs
    assert before[0].gate == ()
    assert after.scatter is not None
    assert after.scatter.architectures == tuple(names)
    points = len(after.scatter.x)
    assert points == len(after.scatter.y) == len(after.scatter.label) == len(after.scatter.architecture) == 480
    auroc = evaluate(checkpoint, images, rhos=(1.0,)).auroc
    area = np.trapezoid([true for _, true in after.gate], [false for false, _ in after.gate])
    assert area == pytest.approx(auroc, abs=0.02)


@pytest.mark.parametrize("config", [{"architectures": ["resnet-w8-d1"], "rounds": 1}], indirect=True)
def test_one_architecture_has_nothing_to_be_compared_with(config: TrainConfig, images: Dataset, tmp_path: Path) -> None:
    found = diagnose(train(config, tmp_path / "run", dataset=images), test_images(config, images))
    assert found.pairs == ()
    assert found.cka_cut is found.probe is found.chance is None
    assert found.gate
