"""From what every part said to every image, to accuracy and shares by rule: nothing is run for it.

Half of the images serve to set thresholds and to choose by; the other half, which no choice has seen, is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.bench.mixes import Answers, Replay, by_rho
from harmony.bench.plan import Target
from harmony.bench.results import MixResult
from harmony.bench.sweep.schema import Point, Rule
from harmony.core.adaptive import SUREST, AdaptiveThreshold, HeldOut
from harmony.core.mix import TestMix
from harmony.core.scores import Floats, conformal_threshold

Mask = NDArray[np.bool_]


class Judged(NamedTuple):
    """The stream of one target, and what the probe wrote about it."""

    target: Target
    scores: Mapping[str, NDArray[Any]]
    rhos: Sequence[float]
    seed: int


def points(judged: Judged, budgets: Sequence[float]) -> tuple[Point, ...]:
    """Every rule: device, fallback and following at each budget and as shipped, and the cloud alone in both ways."""
    choosing = choosing_half(judged.target.stream.is_id)
    return tuple(
        Point(
            rule=rule,
            mixes=_mixes(judged, rule, ~choosing, choosing),
            choice=tuple(mix.accuracy.overall for mix in _mixes(judged, rule, choosing, choosing)),
        )
        for rule in rules(judged, budgets, choosing)
    )


def choosing_half(is_id: Mask) -> Mask:
    """Every second image of the own classes, and every second of the others, in the stream's order."""
    place = np.where(is_id, np.cumsum(is_id), np.cumsum(~is_id))
    return np.asarray(place % 2 == 1, np.bool_)


def rules(judged: Judged, budgets: Sequence[float], choosing: Mask) -> list[Rule]:
    """Thresholds are conformal quantiles of the scores of own images of the choosing half, as after training.

    device: exit 1 passes the share `budget` on. fallback: exit 1 stays as shipped, and exit 2 is set so that the share
    `budget` of all own images goes to the cloud. following: the same while foreign inputs come, else nothing is sent;
    as shipped, where the bundle follows its stream.
    """
    scores, own, manifest = judged.scores, choosing & judged.target.stream.is_id, judged.target.manifest
    shipped1, shipped2 = (one.threshold for one in manifest.exits)
    found = [Rule(strategy="device", budget=None, threshold1=shipped1)]
    found += [
        Rule(strategy="device", budget=budget, threshold1=conformal_threshold(scores["score1"][own], budget))
        for budget in budgets
    ]
    if "cloud" not in scores:
        return found
    sure = _surety(judged, shipped1)[own]
    asked = {None: shipped2} | {budget: conformal_threshold(sure, budget) for budget in budgets}
    found += [
        Rule(strategy=strategy, budget=budget, threshold1=shipped1, threshold2=threshold)
        for strategy in ("fallback", "following")
        for budget, threshold in asked.items()
        if strategy == "fallback" or budget is not None or manifest.held_out is not None
    ]
    return [*found, Rule(strategy="cloud-feature", budget=None), Rule(strategy="cloud-image", budget=None)]


def _surety(judged: Judged, threshold1: float | None) -> Floats:
    """Exit 2's scores, SUREST for what leaves at exit 1."""
    leaves = _passes(judged.scores["score1"], threshold1, otherwise=False)
    return np.where(leaves, np.float32(SUREST), judged.scores["score2"]).astype(np.float32)


def answers(judged: Judged, rule: Rule) -> Answers:
    """What the whole system says under a rule; of one that follows the stream, as if its threshold held throughout."""
    scores, stream = judged.scores, judged.target.stream
    alone = rule.strategy == "device"
    leaves1 = _passes(scores["score1"], rule.threshold1, otherwise=alone)
    leaves2 = _passes(scores["score2"], rule.threshold2, otherwise=alone)
    exits = np.where(leaves1, "exit1", np.where(leaves2, "exit2", "cloud"))
    local = np.where(leaves1, scores["exit1"], scores["exit2"])
    cloud = scores.get("cloud_image" if rule.strategy == "cloud-image" else "cloud", local)
    known = Replay(scores["exit2"], scores["cloud"]) if "cloud" in scores else None
    return Answers(
        truth=judged.target.truth,
        is_id=stream.is_id,
        exits=exits,
        label=np.where(exits == "cloud", cloud, local),
        local=local,
        unsure=exits == "cloud",
        degraded=np.zeros(len(local), np.bool_),
        replay=known,
        surety=_surety(judged, rule.threshold1),
    )


def _passes(values: NDArray[Any], threshold: float | None, *, otherwise: bool) -> Mask:
    if threshold is None:
        return np.full(len(values), otherwise)
    passes: Mask = values >= np.float32(threshold)
    return passes


def _mixes(judged: Judged, rule: Rule, half: Mask, choosing: Mask) -> tuple[MixResult, ...]:
    """half: the images to judge by, a stream of their own to a threshold that follows."""
    target, stream = judged.target, judged.target.stream
    follow, said = _follower(judged, rule, choosing), answers(judged, rule).only(half)
    return by_rho(
        TestMix(stream.indices[half], stream.is_id[half], stream.ood_wanted),
        said if follow is None else said.followed_by(follow()),
        labels=target.dataset.y_test,
        own=target.manifest.classes.own,
        rhos=judged.rhos,
        seed=judged.seed,
        follow=follow,
    )


def _follower(judged: Judged, rule: Rule, choosing: Mask) -> Callable[[], AdaptiveThreshold] | None:
    """Makes what a device with this rule starts with: the bundle's own held-out scores as shipped, else those of own
    images of the choosing half, which its threshold is taken from too."""
    if rule.strategy != "following" or rule.threshold2 is None:
        return None
    manifest, own = judged.target.manifest, choosing & judged.target.stream.is_id
    held_out = manifest.held_out if rule.budget is None else HeldOut.of(_surety(judged, rule.threshold1)[own])
    return None if held_out is None else partial(AdaptiveThreshold, held_out, rule.threshold2)
