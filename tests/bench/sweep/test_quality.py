"""Rules: thresholds come from one half of the images, figures from the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harmony.bench.plan import make_plan
from harmony.bench.results import BenchSettings
from harmony.bench.sweep.quality import Judged, answers, choosing_half, points, rules
from harmony.bench.sweep.schema import Point, Rule

BUDGETS = (0.1, 0.5)


@pytest.fixture
def judged(federation: Any) -> Judged:
    """Exit 1 is sure of nothing, exit 2 scores own images 0 … 1 and others −1 … 0; the cloud knows everything, exits
    know own images only."""
    plan = make_plan(BenchSettings(bundles=federation.devices[:1], cloud=federation.cloud, rhos=(0, 1)))
    target = plan.targets[0]
    inside, truth, n = target.stream.is_id, target.truth, len(target.truth)
    rng = np.random.default_rng(3)
    local = np.where(inside, truth, target.manifest.classes.own[0])
    scores: dict[str, NDArray[Any]] = {
        "score1": (rng.random(n) - 100).astype(np.float32),
        "score2": (rng.random(n) - ~inside).astype(np.float32),
        "exit1": np.full(n, -1),
        "exit2": local,
        "cloud": truth,
        "cloud_image": np.full(n, -1),
    }
    return Judged(target, scores, (0.0, 1.0), 0)


def _named(found: tuple[Point, ...], name: str) -> Point:
    return next(one for one in found if one.rule.name == name)


def test_halves_take_every_second_image_of_both_kinds(judged: Judged) -> None:
    inside = judged.target.stream.is_id
    half = choosing_half(inside)
    for kind in (inside, ~inside):
        assert abs(int(half[kind].sum()) - int((~half)[kind].sum())) <= 1


def test_budgets_are_kept_on_images_that_set_no_threshold(judged: Judged) -> None:
    found = points(judged, BUDGETS)
    for budget in BUDGETS:
        mix = _named(found, f"fallback {100 * budget:g} %").mixes[-1]
        assert mix.offload_id == pytest.approx(budget, abs=0.1)
        assert mix.keep_ood == 0
        assert mix.accuracy.overall == 1
    device = _named(found, "device 50 %").mixes[-1]
    assert (device.cloud, device.accuracy.ood) == (0, 0)
    assert device.accuracy.id == pytest.approx(0.5, abs=0.1)


def test_thresholds_do_not_see_the_reported_half(judged: Judged) -> None:
    choosing = choosing_half(judged.target.stream.is_id)
    scores = {**judged.scores, "score2": np.where(choosing, judged.scores["score2"], 5).astype(np.float32)}
    assert rules(judged._replace(scores=scores), BUDGETS, choosing) == rules(judged, BUDGETS, choosing)


def test_what_a_choice_is_made_by_is_the_other_half(judged: Judged) -> None:
    choosing = choosing_half(judged.target.stream.is_id)
    scores = {**judged.scores, "cloud": np.where(choosing, -1, judged.scores["cloud"])}
    found = _named(points(judged._replace(scores=scores), BUDGETS), "cloud-feature")
    assert (found.mixes[-1].accuracy.overall, found.choice[-1]) == (1, 0)


def test_each_strategy_asks_whom_it_names(judged: Judged) -> None:
    everything = len(judged.target.truth)
    for strategy, exits, right in (("cloud-feature", "cloud", everything), ("cloud-image", "cloud", 0)):
        found = answers(judged, Rule(strategy=strategy, budget=None))  # type: ignore[arg-type]
        assert set(found.exits) == {exits}
        assert int((found.label == found.truth).sum()) == right
    alone = answers(judged, Rule(strategy="device", budget=None, threshold1=-1e9))
    assert set(alone.exits) == {"exit1"}


def test_without_a_cloud_there_are_only_rules_of_the_device(judged: Judged) -> None:
    scores = {name: values for name, values in judged.scores.items() if not name.startswith("cloud")}
    found = points(judged._replace(scores=scores), BUDGETS)
    assert {one.rule.strategy for one in found} == {"device"}
    assert all(mix.accuracy.server is None for one in found for mix in one.mixes)
