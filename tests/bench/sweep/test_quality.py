"""Rules: thresholds come from one half of the images, figures from the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harmony.bench.plan import make_plan
from harmony.bench.results import BenchSettings
from harmony.bench.sweep.quality import Judged, answers, choosing_half, points, rules
from harmony.bench.sweep.schema import Point, Rule
from harmony.core.adaptive import SUREST, AdaptiveThreshold, HeldOut
from harmony.core.mix import test_mix as make_mix
from harmony.core.scores import conformal_threshold

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


def _walk(judged: Judged, held_out: HeldOut, fixed: float, rho: float) -> list[bool]:
    """What a device sends of the reported half at ρ, image by image."""
    stream, seen = judged.target.stream, AdaptiveThreshold(held_out, fixed)
    wanted = make_mix(judged.target.dataset.y_test, judged.target.manifest.classes.own, rho, judged.seed).indices
    there = np.isin(stream.indices, wanted) & ~choosing_half(stream.is_id)
    leaves = judged.scores["score1"] >= np.float32(judged.target.manifest.exits[0].threshold)
    scores = np.where(leaves, SUREST, judged.scores["score2"])[there]
    return [bool(score < seen.judge(float(score))) for score in scores]


def test_a_threshold_that_follows_sends_what_a_device_would(judged: Judged) -> None:
    """At ρ = 0 the promise is that of the fixed threshold and nothing is sent; at ρ = 1 all but the first images."""
    own = choosing_half(judged.target.stream.is_id) & judged.target.stream.is_id
    found, score2 = points(judged, BUDGETS), judged.scores["score2"]
    for budget in BUDGETS:
        fixed, held_out = conformal_threshold(score2[own], budget), HeldOut.of(score2[own])
        assert held_out is not None
        point = _named(found, f"following {100 * budget:g} %")
        assert point.rule.threshold2 == fixed
        for mix in point.mixes:
            assert mix.cloud == pytest.approx(np.mean(_walk(judged, held_out, fixed, mix.rho)))
        calm, mixed = point.mixes
        assert calm.cloud < _named(found, f"fallback {100 * budget:g} %").mixes[0].cloud / 2
        assert mixed.keep_ood is not None
        assert 0 <= mixed.keep_ood < 0.1


def test_a_bundle_that_follows_is_judged_as_it_does(judged: Judged) -> None:
    """By its own held-out scores: above all of the stream's, its threshold holds; below them, nothing is sent."""
    assert "following as shipped" not in {one.rule.name for one in points(judged, BUDGETS)}
    fixed, kept = judged.target.manifest.exits[1].threshold, []
    for value in (2.0, -5.0):
        held_out = HeldOut(images=200, scores=(value,) * 101)
        manifest = judged.target.manifest.model_copy(update={"held_out": held_out})
        shown = judged._replace(target=replace(judged.target, manifest=manifest))
        mixes = _named(points(shown, BUDGETS), "following as shipped").mixes
        assert [mix.cloud for mix in mixes] == [
            pytest.approx(np.mean(_walk(shown, held_out, fixed, mix.rho))) for mix in mixes
        ]
        kept.append(mixes[-1].keep_ood or 0)
    assert kept[0] == _named(points(judged, BUDGETS), "fallback as shipped").mixes[-1].keep_ood
    assert kept[0] < 0.9
    assert 0.97 < kept[1] < 1
