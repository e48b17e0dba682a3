"""The test mix over ρ."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from harmony.core.errors import ConfigError
from harmony.core.mix import RHOS, test_mix

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 50))
OWN = (1, 4, 7)


@pytest.mark.parametrize("rho", RHOS)
def test_all_id_images_and_the_right_number_of_others(rho: float) -> None:
    mix = test_mix(LABELS, OWN, rho, 0)
    assert np.array_equal(np.sort(mix.indices[mix.is_id]), np.flatnonzero(np.isin(LABELS, OWN)))
    assert np.count_nonzero(~mix.is_id) == mix.ood_wanted == round(rho * 150)
    assert not np.isin(LABELS[mix.indices[~mix.is_id]], OWN).any()
    assert len(np.unique(mix.indices)) == len(mix.indices)
    assert mix.short == 0


def test_the_same_seed_gives_the_same_stream_and_another_another() -> None:
    first, again, other = (test_mix(LABELS, OWN, 0.6, seed).indices for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(test_mix(LABELS, OWN[::-1], 0.6, 0).indices, first)


def test_a_smaller_ratio_is_the_larger_one_with_images_left_out() -> None:
    mixes = [test_mix(LABELS, OWN, rho, 5).indices for rho in RHOS]
    for smaller, larger in pairwise(mixes):
        assert np.array_equal(larger[np.isin(larger, smaller)], smaller)


@pytest.mark.parametrize("rho", [0.1, 0.2, 0.6, 1.0])
def test_other_classes_are_balanced(rho: float) -> None:
    mix = test_mix(LABELS, OWN, rho, 0)
    counts = np.bincount(LABELS[mix.indices[~mix.is_id]], minlength=10)[[0, 2, 3, 5, 6, 8, 9]]
    assert counts.max() - counts.min() <= 1


def test_the_order_is_shuffled() -> None:
    mix = test_mix(LABELS, OWN, 1, 0)
    halves = np.array_split(mix.is_id, 2)
    assert all(0.35 < half.mean() < 0.65 for half in halves)


def test_too_few_others_are_all_taken_and_said() -> None:
    mix = test_mix(LABELS, tuple(range(8)), 1, 0)
    assert np.count_nonzero(~mix.is_id) == 100
    assert (mix.ood_wanted, mix.short) == (400, 300)
    alone = test_mix(LABELS, tuple(range(10)), 0.5, 0)
    assert alone.is_id.all()
    assert alone.short == 250


def test_unbalanced_others_last_as_long_as_they_last() -> None:
    labels = np.array([0] * 20 + [1] * 2 + [2] * 30)
    mix = test_mix(labels, (0,), 1, 0)
    assert np.bincount(labels[mix.indices]).tolist() == [20, 2, 18]


@pytest.mark.parametrize(("rho", "seed", "own"), [(-0.1, 0, OWN), (np.nan, 0, OWN), (np.inf, 0, OWN), (1, -1, OWN)])
def test_bad_arguments_are_named(rho: float, seed: int, own: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"rho|seed"):
        test_mix(LABELS, own, rho, seed)


@pytest.mark.parametrize("own", [(), (10,)])
def test_a_client_without_test_images_is_named(own: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="no test image"):
        test_mix(LABELS, own, 0, 0)
