"""Thresholds keep their promise on images that calibration has not seen."""

from __future__ import annotations

import numpy as np
import pytest

from harmony.core.config import ExitConfig
from harmony.train.calibrate import NEVER, calibrate


def draws(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two correlated scores, as two exits of one network give."""
    random = np.random.default_rng(seed)
    common = random.normal(size=count)
    return tuple((common + random.normal(size=count)).astype(np.float32) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("offload", [0.02, 0.1, 0.3])
def test_the_offloaded_share_is_the_budget_on_average(offload: float) -> None:
    shares, passed = [], []
    for seed in range(200):
        exits = calibrate(*draws(99, seed), ExitConfig(pass1=0.5, offload=offload))
        score1, score2 = draws(400, 10_000 + seed)
        at1 = score1 >= np.float32(exits[0].threshold)
        shares.append(np.mean(~at1 & (score2 < np.float32(exits[1].threshold))))
        passed.append(np.mean(~at1))
    assert np.mean(shares) <= offload + 0.005
    assert np.mean(shares) >= offload - 0.02
    assert abs(np.mean(passed) - 0.5) < 0.02


def test_pass1_of_one_lets_nobody_leave_at_exit_1() -> None:
    score1, score2 = draws(50, 0)
    exits = calibrate(score1 + np.float32(1e6), score2, ExitConfig(pass1=1.0))
    assert exits[0].threshold == NEVER
    assert np.float32(exits[0].threshold) > 1e30


def test_a_budget_of_nothing_sends_nothing() -> None:
    exits = calibrate(*draws(50, 0), ExitConfig(pass1=0.5, offload=0.0))
    assert exits[1].threshold <= -3e38


def test_a_budget_that_exit_1_has_used_up_sends_everything_else() -> None:
    score1, score2 = draws(50, 0)
    exits = calibrate(score1, score2, ExitConfig(pass1=0.1, offload=0.5))
    assert exits[1].threshold == NEVER
