"""A threshold that follows the stream: nothing is sent where nothing foreign comes, nor more than by a fixed one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from harmony.core.adaptive import EVERY, MOST, SENDS_NOTHING, SUREST, AdaptiveThreshold, HeldOut, sent_in_order
from harmony.core.errors import ConfigError
from harmony.core.scores import Floats, conformal_threshold

RANDOM = np.random.default_rng(0)


def own(count: int) -> Floats:
    return RANDOM.normal(3, 1, count).astype(np.float32)


def foreign(count: int) -> Floats:
    return RANDOM.normal(-1, 1, count).astype(np.float32)


def known(scores: Floats) -> HeldOut:
    held_out = HeldOut.of(scores)
    assert held_out is not None
    return held_out


def threshold(held_out: Floats) -> AdaptiveThreshold:
    return AdaptiveThreshold(known(held_out), conformal_threshold(held_out, 0.05))


def mixed(ids: int, oods: int) -> tuple[Floats, NDArray[np.bool_]]:
    scores, is_id = np.concatenate([own(ids), foreign(oods)]), np.arange(ids + oods) < ids
    order = RANDOM.permutation(len(scores))
    return scores[order], is_id[order]


@pytest.mark.parametrize("held_out", [30, 120, 2000])
def test_where_nothing_foreign_comes_almost_nothing_is_sent_after_the_start(held_out: int) -> None:
    sent = [sent_in_order(threshold(own(held_out)), own(1000))[EVERY:].mean() for _ in range(20)]
    assert np.mean(sent) < 0.005


@pytest.mark.parametrize("oods", [200, 500, 1000])
def test_where_foreign_inputs_come_most_of_them_are_sent_and_few_of_the_others(oods: int) -> None:
    scores, is_id = mixed(1000, oods)
    sent = sent_in_order(threshold(own(120)), scores)
    assert sent[~is_id].mean() > 0.85
    assert sent[is_id].mean() < 0.12


def test_never_is_an_input_sent_that_the_fixed_threshold_keeps() -> None:
    for held_out in (own(30), own(120)):
        scores, _ = mixed(400, 200)
        sent = sent_in_order(threshold(held_out), scores)
        assert not (sent & (scores >= conformal_threshold(held_out, 0.05))).any()


def test_it_follows_when_foreign_inputs_begin_to_come_and_when_they_stop() -> None:
    adaptive = threshold(own(200))
    quiet, (storm, is_id), calm = own(600), mixed(300, 300), own(1200)
    before = sent_in_order(adaptive, quiet)[EVERY:]
    during = sent_in_order(adaptive, storm)
    after = sent_in_order(adaptive, calm)[-400:]
    assert before.mean() < 0.01
    assert during[~is_id][-100:].mean() > 0.85
    assert after.mean() < 0.01


def test_until_enough_inputs_came_the_fixed_threshold_holds() -> None:
    adaptive = AdaptiveThreshold(known(own(120)), 1.5)
    assert [adaptive.judge(9.0) for _ in range(EVERY + 1)] == [1.5] * EVERY + [SENDS_NOTHING]


def test_inputs_that_left_at_exit_1_count_as_surest() -> None:
    held_out = own(120)
    held_out[:60] = SUREST
    scores, is_id = mixed(600, 600)
    scores[is_id & (RANDOM.random(1200) < 0.5)] = SUREST
    sent = sent_in_order(AdaptiveThreshold(known(held_out), 1.5), scores)
    assert not sent[scores == SUREST].any()
    assert sent[~is_id].mean() > 0.85


def test_an_input_is_judged_before_it_is_learnt_from() -> None:
    """The same stream with another last input gets the same verdicts but for that input's own."""
    held_out, (scores, _) = own(120), mixed(300, 300)
    other = scores.copy()
    other[-1] = np.float32(-50)
    one, two = (sent_in_order(threshold(held_out), stream) for stream in (scores, other))
    assert (one[:-1] == two[:-1]).all()


@pytest.mark.parametrize("images", [1, 2, 3, 30, MOST - 1, MOST, MOST + 1, 5 * MOST + 3])
def test_held_out_scores_are_the_lower_half_in_even_steps(images: int) -> None:
    scores = own(images)
    held_out = known(scores)
    ranks = [held_out.step * place for place in range(len(held_out.scores))]
    assert held_out.images == images
    assert list(held_out.scores) == np.sort(scores)[ranks].tolist()
    assert ranks[-1] <= images / 2 < ranks[-1] + held_out.step
    assert len(ranks) <= MOST // 2 + 1


def test_many_held_out_images_are_thinned_to_the_same_verdicts() -> None:
    """Steps of two ranks and of one differ by less than the doubt."""
    scores = own(MOST)
    stream, is_id = mixed(600, 300)
    few, many = (sent_in_order(threshold(one), stream) for one in (scores, np.repeat(scores, 2)))
    assert (few != many).mean() < 0.05
    assert many[~is_id].mean() > 0.85


@pytest.mark.parametrize("budget", [0, 0.001, 0.01, 0.05, 0.29, 0.5])
@pytest.mark.parametrize("images", [1, 2, 99, 100, MOST])
def test_another_promise_has_the_threshold_of_the_calibration(images: int, budget: float) -> None:
    scores = own(images)
    assert known(scores).threshold(budget) == conformal_threshold(scores, budget)


@pytest.mark.parametrize("budget", [0.001, 0.01, 0.05, 0.29, 0.5])
def test_thinned_scores_never_promise_too_little(budget: float) -> None:
    scores = own(5 * MOST + 3)
    found = known(scores).threshold(budget)
    sent, asked = (float((scores < one).mean()) for one in (found, conformal_threshold(scores, budget)))
    assert asked - 6 / len(scores) < sent <= asked <= budget


@pytest.mark.parametrize("budget", [-0.1, 0.51, float("nan")])
def test_a_promise_whose_scores_are_not_kept_is_refused(budget: float) -> None:
    with pytest.raises(ConfigError, match=r"0 to 0\.5"):
        known(own(100)).threshold(budget)


def test_without_held_out_images_there_is_nothing_to_follow() -> None:
    assert HeldOut.of(own(0)) is None


def test_infinite_scores_are_written_as_the_largest_float() -> None:
    assert known(np.full(3, np.inf, np.float32)).scores == (SUREST, SUREST)


@pytest.mark.parametrize(
    ("images", "scores", "problem"),
    [
        (4, (1.0, 2.0), "3 scores are needed"),
        (4, (1.0, 3.0, 2.0), "ascending"),
        (0, (1.0,), "greater than or equal to 1"),
        (4, (1.0, 2.0, float("nan")), "finite"),
        (2 * MOST, tuple(range(MOST)), "at most 257"),
    ],
)
def test_scores_that_are_no_lower_half_are_refused(images: int, scores: tuple[float, ...], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        HeldOut(images=images, scores=scores)


def test_several_threads_may_share_a_threshold() -> None:
    adaptive = threshold(own(120))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(adaptive.judge, own(4000).tolist()))
    assert adaptive.judge(0.0) == SENDS_NOTHING
