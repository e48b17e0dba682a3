"""Partitions: disjoint, complete, balanced, reproducible; impossible requests say what would be possible."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harmony.core.errors import ConfigError
from harmony.core.partition import (
    ClassesPerClient,
    ClientSplit,
    Dirichlet,
    Shards,
    holdings,
    partition,
    partition_spec,
)

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 120))
SPECS: list[Shards | Dirichlet | ClassesPerClient] = [
    Shards(clients=20),
    Dirichlet(clients=20, alpha=0.1),
    Dirichlet(clients=5, alpha=0.001),
    Dirichlet(clients=7, alpha=100.0),
    ClassesPerClient(clients=8, classes=3),
    ClassesPerClient(clients=8, classes=3, samples_per_class=17),
]


def own_images(split: ClientSplit) -> NDArray[np.int64]:
    return np.concatenate([split.train, split.holdout])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_splits_are_disjoint_and_nobody_is_empty(spec: Any) -> None:
    splits = partition(LABELS, spec, classes=10, seed=3)
    assert len(splits) == spec.clients
    everything = np.concatenate([own_images(split) for split in splits])
    assert len(np.unique(everything)) == len(everything)
    for split in splits:
        assert len(split.train) > 0
        assert split.own == tuple(sorted(set(LABELS[split.train].tolist())))
        assert split.train.dtype == split.holdout.dtype == np.int64
        assert (np.diff(split.train) > 0).all()
    if getattr(spec, "samples_per_class", None) is None:
        assert len(everything) == len(LABELS), "no image is lost"


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_same_seed_gives_the_same_split_and_another_another(spec: Any) -> None:
    first, again, other = (partition(LABELS, spec, classes=10, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a.train, b.train) for a, b in zip(first, again, strict=True))
    assert all(np.array_equal(a.holdout, b.holdout) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a.train, b.train) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.99])
def test_holdout_is_stratified(share: float) -> None:
    for split in partition(LABELS, Dirichlet(clients=10, alpha=0.3), classes=10, seed=0, holdout=share):
        for label in split.own:
            kept, apart = (int(np.sum(LABELS[part] == label)) for part in (split.train, split.holdout))
            assert kept >= 1
            assert apart == min(max(1, round(share * (kept + apart))), kept + apart - 1)


def test_a_single_image_of_a_class_is_never_held_out() -> None:
    (split,) = partition(np.array([0, 0, 1]), Shards(clients=1), classes=2, seed=0)
    assert split.own == (0, 1)
    assert len(split.holdout) == 1


def test_without_holdout_everything_is_for_training() -> None:
    splits = partition(LABELS, Shards(clients=4), classes=10, seed=0, holdout=0)
    assert [len(split.holdout) for split in splits] == [0] * 4
    assert splits[0].holdout.dtype == np.int64


def test_the_holdout_share_does_not_move_images_between_clients() -> None:
    few, many = (partition(LABELS, SPECS[1], classes=10, seed=0, holdout=share) for share in (0.1, 0.4))
    for a, b in zip(few, many, strict=True):
        assert set(own_images(a)) == set(own_images(b))


def test_shards_are_equal_and_of_few_classes() -> None:
    splits = partition(LABELS, Shards(clients=50), classes=10, seed=0)
    assert {len(own_images(split)) for split in splits} == {24}
    assert max(len(split.own) for split in splits) <= 4
    assert min(len(split.own) for split in splits) <= 2


def test_a_small_alpha_is_skewed_and_a_large_one_even() -> None:
    skewed, even = (partition(LABELS, Dirichlet(clients=5, alpha=alpha), classes=10, seed=0) for alpha in (0.01, 1e4))
    assert np.mean([len(split.own) for split in skewed]) < 5
    assert {len(split.own) for split in even} == {10}
    assert min(len(own_images(split)) for split in skewed) >= 10


@pytest.mark.parametrize(
    ("clients", "each", "classes"), [(8, 3, 10), (20, 2, 10), (4, 3, 10), (20, 10, 100), (3, 4, 4)]
)
@pytest.mark.parametrize("seed", range(5))
def test_classes_are_covered_balanced_and_varied(clients: int, each: int, classes: int, seed: int) -> None:
    labels = np.repeat(np.arange(classes), 40)
    splits = partition(labels, ClassesPerClient(clients=clients, classes=each), classes=classes, seed=seed)
    assert {len(split.own) for split in splits} == {each}
    holders = np.bincount(np.concatenate([split.own for split in splits]), minlength=classes)
    assert holders.min() >= 1
    assert holders.max() - holders.min() <= 1
    if each < classes:
        assert len({split.own for split in splits}) >= 0.8 * clients


def test_samples_per_class_is_exact() -> None:
    for split in partition(LABELS, SPECS[5], classes=10, seed=0):
        assert np.unique(LABELS[own_images(split)], return_counts=True)[1].tolist() == [17] * 3


def test_classes_that_nobody_holds_are_allowed_when_there_are_too_few_hands() -> None:
    splits = partition(LABELS, ClassesPerClient(clients=2, classes=2), classes=10, seed=0)
    assert len({label for split in splits for label in split.own}) == 4


@pytest.mark.parametrize(
    ("spec", "mend"),
    [
        (Shards(clients=601), "use at most 600 clients"),
        (Dirichlet(clients=121, alpha=1), "fewer clients or a smaller min_samples"),
        (Dirichlet(clients=119, alpha=0.01), "use a larger alpha"),
        (ClassesPerClient(clients=8, classes=11), "but the data have 10"),
        (ClassesPerClient(clients=8, classes=3, samples_per_class=41), "use at most 40 samples_per_class"),
        (ClassesPerClient(clients=500, classes=3), "use fewer clients or classes"),
    ],
    ids=str,
)
def test_impossible_requests_say_what_is_possible(spec: Any, mend: str) -> None:
    with pytest.raises(ConfigError, match=mend):
        partition(LABELS, spec, classes=10, seed=0)


@pytest.mark.parametrize(
    "bad", [{"seed": -1}, {"holdout": 1.0}, {"holdout": -0.1}, {"holdout": float("nan")}, {"classes": 9}]
)
def test_bad_arguments_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        partition(LABELS, Shards(clients=2), **({"classes": 10, "seed": 0} | bad))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "dirichlet", "clients": 3, "alpha": 0}, "alpha: .*greater than 0; got 0"),
        ({"kind": "dirichlet", "clients": 3, "alpha": float("nan")}, "alpha"),
        ({"kind": "dirichlet", "clients": 3}, "alpha: is missing"),
        ({"kind": "shards", "clients": 0}, "clients: .*got 0"),
        ({"kind": "shards", "clients": 2, "colour": 1}, "colour"),
        ({"kind": "random", "clients": 2}, "kind"),
        ({}, "kind"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"partition: {message}"):
        partition_spec(fields)


def test_specs_round_trip_through_plain_fields() -> None:
    for spec in SPECS:
        assert partition_spec(spec.model_dump()) == spec


def test_holdings_count_train_and_holdout_together() -> None:
    splits = partition(LABELS, SPECS[5], classes=10, seed=0)
    rows = holdings(splits, LABELS, [f"c{label}" for label in range(10)])
    assert [row.client for row in rows] == list(range(8))
    assert rows[0].images == {f"c{label}": 17 for label in splits[0].own}
    assert rows[0].train + rows[0].holdout == 51
    assert rows[0].cells[:2] == ("000", ", ".join(f"c{label} 17" for label in splits[0].own))
