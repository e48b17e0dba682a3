"""Clients judged by a share of their own images: what is dealt, what is kept apart, and what the evaluation counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harmony.core.config import TrainConfig, make_config
from harmony.core.data import Dataset
from harmony.core.errors import ConfigError, ContractMismatch
from harmony.core.partition import Dirichlet, partition
from harmony.train import evaluate, train
from harmony.train.federation import federation
from harmony.train.test_images import test_images

PARTITIONS = {
    "classes": {"kind": "classes", "clients": 4, "classes": 3},
    "dirichlet": {"kind": "dirichlet", "clients": 4, "alpha": 0.5},
}


def judged_by_own(config: TrainConfig, kind: str) -> TrainConfig:
    own = {"data": config.data.model_dump() | {"own_test": 0.25}, "partition": PARTITIONS[kind]}
    return make_config(config.model_dump(mode="json") | own)


@pytest.mark.parametrize("kind", list(PARTITIONS))
def test_official_sets_are_merged_and_a_quarter_is_kept_apart(kind: str, config: TrainConfig, images: Dataset) -> None:
    config = judged_by_own(config, kind)
    members, tests = federation(config, images), test_images(config, images)
    assert tests.splits is not None
    everything = np.concatenate(
        [
            *(np.concatenate([client.train, client.holdout]) for client in members.clients),
            tests.all,
        ]
    )
    assert len(set(everything.tolist())) == len(everything)  # nobody trains on what anybody is judged by
    assert set(everything.tolist()) <= set(range(len(images.y_train) + len(images.y_test)))
    assert max(everything) >= len(images.y_train)  # official test images are dealt, too
    assert (members.dataset.x_train[tests.all] == tests.x[tests.all]).all()
    for client, split in zip(members.clients, tests.splits, strict=True):
        share = len(split.test) / (len(split.test) + len(client.train) + len(client.holdout))
        assert 0.2 < share < 0.3
    assert members.image == images.image_spec()


def test_a_client_is_judged_by_its_own_and_by_what_it_does_not_hold(config: TrainConfig, images: Dataset) -> None:
    tests = test_images(judged_by_own(config, "dirichlet"), images)
    assert tests.splits is not None
    for index, split in enumerate(tests.splits):
        rows = tests.of(index)
        held = np.isin(tests.y[rows], split.own)
        assert set(rows[held].tolist()) == set(split.test.tolist())
        assert set(rows.tolist()) <= set(tests.all.tolist())
        assert len(rows[~held]) == sum(
            int((~np.isin(tests.y[other.test], split.own)).sum()) for other in tests.splits if other is not split
        )


def test_the_evaluation_counts_a_clients_own_images(config: TrainConfig, images: Dataset, tmp_path: Path) -> None:
    config = judged_by_own(config, "classes")
    checkpoint = train(config, tmp_path / "run", dataset=images)
    result, tests = evaluate(checkpoint, images, rhos=(0.0, 1.0)), test_images(config, images)
    assert tests.splits is not None
    for client, split in zip(result.clients, tests.splits, strict=True):
        right = client.curve[0].overall * len(split.test)
        assert right == pytest.approx(round(right))  # shares of that many images
        assert client.curve[1].server_ood is not None
    other = Dataset("other", images.x_train, images.y_train, images.x_test, images.y_test, images.class_names)
    with pytest.raises(ContractMismatch, match="judged by images of their own"):
        evaluate(checkpoint, other)


def test_official_test_images_are_everybodys_by_default(config: TrainConfig, images: Dataset) -> None:
    tests = test_images(config, images)
    assert tests.x is images.x_test
    assert tests.of(0).tolist() == tests.of(3).tolist() == list(range(len(images.y_test)))


def test_test_images_leave_the_holdout_alone_and_the_last_image_of_a_class() -> None:
    labels = np.repeat(np.arange(10), 40)
    spec = Dirichlet(clients=5, alpha=0.3)
    without = partition(labels, spec, classes=10, seed=3)
    whole = partition(labels, spec, classes=10, seed=3, test=0.25)
    for before, after in zip(without, whole, strict=True):
        assert not len(before.test)
        assert before.own == after.own
        held = [np.sort(np.concatenate([one.train, one.holdout, one.test])).tolist() for one in (before, after)]
        assert held[0] == held[1]
        assert set(labels[after.train].tolist()) == set(after.own)


def test_one_image_a_class_is_too_few_to_judge_by() -> None:
    with pytest.raises(ConfigError, match="client 0 has one image a class"):
        partition(np.arange(12) % 12, Dirichlet(clients=1, alpha=1.0), classes=12, seed=0, test=0.25)
    with pytest.raises(ConfigError, match="test: 1 is not a share"):
        partition(np.arange(12) % 12, Dirichlet(clients=1, alpha=1.0), classes=12, seed=0, test=1)
