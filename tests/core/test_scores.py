"""Exit scores against references in double precision, at the edges of float32, and the coverage of thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from harmony.core.errors import ConfigError, Diverged
from harmony.core.scores import SCORES, conformal_threshold, energy, needs_gate, neg_entropy, own_mass, score, softmax

Doubles = NDArray[np.float64]
OWN = np.array([1, 4, 5])
OF_LOGITS = tuple(name for name in SCORES if not needs_gate(name))
finite = st.floats(-1e4, 1e4, width=32)
logits_of_six = hnp.arrays(np.float32, (3, 6), elements=finite)


def probabilities(logits: NDArray[Any]) -> Doubles:
    exp = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    out: Doubles = exp / exp.sum(axis=-1, keepdims=True)
    return out


def log_sum_exp(logits: NDArray[Any]) -> Doubles:
    top = logits.max(axis=-1).astype(np.float64)
    out: Doubles = top + np.log(np.exp(logits.astype(np.float64) - top[:, None]).sum(axis=-1))
    return out


def reference(name: str, logits: NDArray[Any]) -> Doubles:
    """The formulas as the papers write them, in double precision."""
    p = probabilities(logits)
    others = np.setdiff1d(np.arange(logits.shape[1]), OWN)
    out: Doubles = {
        "entropy": (p * np.log(np.maximum(p, 1e-300))).sum(axis=-1),
        "msp": p.max(axis=-1),
        "max_logit": logits.max(axis=-1),
        "energy": log_sum_exp(logits),
        "gen": -((p * (1 - p)) ** 0.1).sum(axis=-1),
        "own_mass": log_sum_exp(logits[:, OWN]) - log_sum_exp(logits[:, others]),
    }[name]
    return out


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_a_score_is_its_formula(name: str, scale: float) -> None:
    logits = (scale * np.random.default_rng(3).normal(size=(500, 10))).astype(np.float32)
    found = score(name, logits, logits, OWN)
    assert found.dtype == np.float32
    assert found.shape == (500,)
    # gen: p is clipped at the float32 below 1, where its slope is steepest
    np.testing.assert_allclose(found, reference(name, logits), rtol=2e-5, atol=2e-2 if name == "gen" else 2e-6)


@pytest.mark.parametrize("name", SCORES)
@given(logits=logits_of_six)
def test_any_logits_give_finite_scores_and_a_batch_scores_like_its_samples(
    name: str, logits: NDArray[np.float32]
) -> None:
    found = score(name, logits, logits, OWN)
    assert np.isfinite(found).all()
    alone = [score(name, one[None], one[None], OWN)[0] for one in logits]
    np.testing.assert_allclose(found, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["entropy", "msp", "gen", "own_mass"])
@given(logits=hnp.arrays(np.float32, (2, 6), elements=st.floats(-20, 20, width=32)), shift=st.floats(-50, 50, width=32))
def test_scores_of_probabilities_ignore_a_common_shift(name: str, logits: NDArray[np.float32], shift: float) -> None:
    moved = logits + np.float32(shift)
    tolerance = 3e-2 if name == "gen" else 1e-4
    np.testing.assert_allclose(
        score(name, logits, logits, OWN), score(name, moved, moved, OWN), rtol=1e-4, atol=tolerance
    )


@pytest.mark.parametrize("name", ["max_logit", "energy"])
def test_scores_of_logits_follow_a_common_shift(name: str) -> None:
    logits = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    np.testing.assert_allclose(
        score(name, logits + 7, None, OWN), score(name, logits, None, OWN) + np.float32(7), rtol=1e-6
    )


@pytest.mark.parametrize("name", OF_LOGITS)
def test_a_surer_sample_scores_higher(name: str) -> None:
    logits = np.linspace(0, 8, 50, dtype=np.float32)[:, None] * np.eye(6, dtype=np.float32)[2]
    assert (np.diff(score(name, logits, None, OWN)) > 0).all()


def test_the_uniform_and_the_certain_are_the_ends_of_the_entropy() -> None:
    assert neg_entropy(np.zeros((1, 8), np.float32))[0] == pytest.approx(-np.log(8))
    certain = np.array([[1e4, -1e4, 0, 0]], np.float32)
    assert neg_entropy(certain)[0] == 0
    assert softmax(certain).tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize("odds", [-1e4, -200, -90, -20, 20, 90, 200, 1e4])
def test_own_mass_keeps_its_resolution_however_sure_the_gate_is(odds: float) -> None:
    gate = np.full((2, 10), -odds / 2, np.float32)
    gate[:, OWN] = odds / 2
    gate[1, OWN] += abs(odds) / 1000
    expected = odds + np.log(3 / 7)
    first, second = own_mass(gate, OWN)
    assert first == pytest.approx(expected, rel=1e-6)
    assert second > first, "one minus the own mass would cancel here"


def test_own_mass_is_finite_even_where_every_class_is_an_own_one() -> None:
    gate = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    found = own_mass(gate, np.arange(3))
    assert np.isfinite(found).all()
    assert (found > 1e20).all()


def test_scores_leave_their_input_as_it_was() -> None:
    gate = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    before = gate.copy()
    for name in SCORES:
        score(name, gate, gate, OWN)
    assert (gate == before).all()


def test_what_is_no_score_is_named() -> None:
    logits = np.zeros((1, 6), np.float32)
    with pytest.raises(ConfigError, match=r"'odin' is no exit score \(choose one of entropy, .*own_mass\)"):
        score("odin", logits, None, OWN)
    with pytest.raises(ConfigError, match="gate head"):
        score("own_mass", logits, None, OWN)
    assert energy(np.array([[-np.inf, 2]], np.float32))[0] == 2


@pytest.mark.parametrize("budget", [0.05, 0.1, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("held_out", [20, 99])
def test_at_most_the_budget_is_passed_on_and_hardly_less(budget: float, held_out: int) -> None:
    draws = np.random.default_rng(7).normal(size=(4000, held_out + 50)).astype(np.float32)
    thresholds = np.array([conformal_threshold(one[:held_out], budget) for one in draws])
    share = (draws[:, held_out:] < thresholds[:, None]).mean()
    noise = 4 * np.sqrt(0.25 / 4000 / held_out + 0.25 / 200_000)
    assert budget - 1 / (held_out + 1) - noise <= share <= budget + noise


@pytest.mark.parametrize(
    ("count", "budget", "rank"),
    [(99, 0.1, 10), (99, 0.29, 29), (9, 0.1, 1), (9, 0.7, 7), (10, 1.0, 10), (1, 0.5, 1), (3, 0.999, 3)],
)
def test_the_threshold_is_the_score_of_the_rank(count: int, budget: float, rank: int) -> None:
    scores = np.random.default_rng(0).permutation(count).astype(np.float32) + 1
    assert conformal_threshold(scores, budget) == rank


@pytest.mark.parametrize(("count", "budget"), [(0, 0.0), (0, 1.0), (50, 0.0), (8, 0.1)])
def test_where_no_rank_keeps_the_budget_nothing_is_passed_on(count: int, budget: float) -> None:
    threshold = conformal_threshold(np.arange(count, dtype=np.float32), budget)
    assert threshold == np.finfo(np.float32).min
    assert np.float32(threshold) == threshold


def test_ties_stay_and_infinite_scores_count() -> None:
    tied = np.array([1, 2, 2, 2, 2, 2, 2, 2, 2], np.float32)
    assert (tied < conformal_threshold(tied, 0.5)).mean() <= 0.5
    assert conformal_threshold(np.array([np.inf, 1, np.inf], np.float32), 0.5) == np.inf
    assert conformal_threshold(np.array([np.inf, 1, np.inf], np.float32), 0.25) == 1


@pytest.mark.parametrize("budget", [-0.1, 1.1, float("nan")])
def test_a_budget_is_a_share(budget: float) -> None:
    with pytest.raises(ConfigError, match="share from 0 to 1"):
        conformal_threshold(np.zeros(5, np.float32), budget)


def test_scores_that_are_no_numbers_are_named() -> None:
    with pytest.raises(Diverged, match="not numbers"):
        conformal_threshold(np.array([1, np.nan, 2], np.float32), 0.1)
