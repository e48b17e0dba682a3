"""A threshold that follows the stream: nothing is sent where nothing foreign comes, and what pays where it does."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from harmony.core.adaptive import EVERY, AdaptiveThreshold, sent_in_order
from harmony.core.scores import Floats, conformal_threshold

RANDOM = np.random.default_rng(0)


def own(count: int) -> Floats:
    return RANDOM.normal(3, 1, count).astype(np.float32)


def foreign(count: int) -> Floats:
    return RANDOM.normal(-1, 1, count).astype(np.float32)


def threshold(held_out: Floats, start: float = 0.0) -> AdaptiveThreshold:
    """The device is right on all its own, the cloud on half of them."""
    device = np.ones(len(held_out), bool)
    cloud = np.random.default_rng(0).random(len(held_out)) < 0.5
    return AdaptiveThreshold(held_out, device, cloud, foreign=0.8, start=start)


def mixed(ids: int, oods: int) -> tuple[Floats, NDArray[np.bool_]]:
    scores, is_id = np.concatenate([own(ids), foreign(oods)]), np.arange(ids + oods) < ids
    order = RANDOM.permutation(len(scores))
    return scores[order], is_id[order]


def test_where_nothing_foreign_comes_almost_nothing_is_sent_after_the_start() -> None:
    sent = [sent_in_order(threshold(own(120)), own(1000))[EVERY:].mean() for _ in range(20)]
    fixed = [(own(1000) < conformal_threshold(own(120), 0.05)).mean() for _ in range(20)]
    assert np.mean(sent) < 0.25 * np.mean(fixed)


@pytest.mark.parametrize("oods", [200, 500, 1000])
def test_where_foreign_inputs_come_most_of_them_are_sent_and_few_of_the_others(oods: int) -> None:
    scores, is_id = mixed(1000, oods)
    sent = sent_in_order(threshold(own(120)), scores)
    assert sent[~is_id].mean() > 0.85
    assert sent[is_id].mean() < 0.12


def test_it_follows_when_foreign_inputs_begin_to_come_and_when_they_stop() -> None:
    adaptive = threshold(own(200))
    quiet, (storm, is_id), calm = own(600), mixed(300, 300), own(1200)
    before = sent_in_order(adaptive, quiet)[EVERY:]
    during = sent_in_order(adaptive, storm)
    after = sent_in_order(adaptive, calm)[-400:]
    assert before.mean() < 0.05
    assert during[~is_id][-100:].mean() > 0.85
    assert after.mean() < 0.05


def test_nothing_is_sent_to_a_cloud_that_is_never_right() -> None:
    held_out = own(120)
    nobody = np.zeros(120, bool)
    adaptive = AdaptiveThreshold(held_out, ~nobody, nobody, foreign=0.0, start=-np.inf)
    assert not sent_in_order(adaptive, mixed(500, 500)[0]).any()


def test_until_enough_inputs_came_and_without_held_out_images_the_first_threshold_stands() -> None:
    adaptive = threshold(own(120), start=1.5)
    for score in foreign(EVERY - 1).tolist():
        adaptive.observe(score)
    assert adaptive.threshold == 1.5
    blind = AdaptiveThreshold(own(0), np.zeros(0, bool), np.zeros(0, bool), foreign=0.8, start=1.5)
    sent_in_order(blind, mixed(100, 100)[0])
    assert blind.threshold == 1.5


def test_inputs_that_left_at_an_earlier_exit_count_as_surest() -> None:
    held_out = own(120)
    held_out[:60] = np.inf
    scores, is_id = mixed(600, 600)
    scores[is_id & (RANDOM.random(1200) < 0.5)] = np.inf
    sent = sent_in_order(threshold(held_out), scores)
    assert not sent[np.isinf(scores)].any()
    assert sent[~is_id].mean() > 0.85


def test_a_threshold_is_judged_before_it_learns_from_an_input() -> None:
    """The same stream with another last input gets the same verdicts but for that input's own."""
    held_out, (scores, _) = own(120), mixed(300, 300)
    other = scores.copy()
    other[-1] = np.float32(-50)
    one, two = (sent_in_order(threshold(held_out), stream) for stream in (scores, other))
    assert (one[:-1] == two[:-1]).all()
