"""Percentiles and ratios."""

from __future__ import annotations

import numpy as np

from harmony.bench.statistics import ratio, summarise


def test_percentiles_are_nearest_rank() -> None:
    found = summarise(np.random.default_rng(0).permutation(100) + 1)
    assert (found.n, found.min, found.median, found.p90, found.p99, found.mean) == (100, 1, 50, 90, 99, 50.5)


def test_a_percentile_of_few_values_is_one_of_them() -> None:
    found = summarise([3.0, 1.0, 10.0])
    assert (found.median, found.p90, found.p99) == (3, 10, 10)


def test_a_ratio_keeps_its_worst_round() -> None:
    found = ratio([1.1, 1.0, 1.5])
    assert (found.median, found.low, found.high, found.rounds) == (1.1, 1.0, 1.5, 3)
