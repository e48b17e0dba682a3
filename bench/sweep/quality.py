"""From what every part said to every image, to accuracy and shares by rule: nothing is run for it.

Half of the images serve to set thresholds and to choose by; the other half, which no choice has seen, is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.bench.mixes import Answers, Replay, by_rho
from harmony.bench.plan import Target
from harmony.bench.results import MixResult
from harmony.bench.sweep.schema import Point, Rule
from harmony.core.mix import TestMix
from harmony.core.scores import conformal_threshold

Mask = NDArray[np.bool_]
_NEVER = float(np.finfo(np.float32).max)


class Judged(NamedTuple):
    """The stream of one target, and what the probe wrote about it."""

    target: Target
    scores: Mapping[str, NDArray[Any]]
    rhos: Sequence[float]
    seed: int


def points(judged: Judged, budgets: Sequence[float]) -> tuple[Point, ...]:
    """Every rule: device and fallback at each budget and as shipped, and the cloud alone in both ways."""
    choosing = choosing_half(judged.target.stream.is_id)
    return tuple(
        Point(
            rule=rule,
            mixes=_mixes(judged, rule, ~choosing),
            choice=tuple(mix.accuracy.overall for mix in _mixes(judged, rule, choosing)),
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
    `budget` of all own images goes to the cloud.
    """
    scores, own = judged.scores, choosing & judged.target.stream.is_id
    shipped1, shipped2 = (one.threshold for one in judged.target.manifest.exits)
    found = [Rule(strategy="device", budget=None, threshold1=shipped1)]
    found += [
        Rule(strategy="device", budget=budget, threshold1=conformal_threshold(scores["score1"][own], budget))
        for budget in budgets
    ]
    if "cloud" not in scores:
        return found
    sure = np.where(scores["score1"] >= np.float32(shipped1), np.inf, scores["score2"])[own]
    found.append(Rule(strategy="fallback", budget=None, threshold1=shipped1, threshold2=shipped2))
    found += [
        Rule(
            strategy="fallback",
            budget=budget,
            threshold1=shipped1,
            threshold2=min(_NEVER, conformal_threshold(sure.astype(np.float32), budget)),
        )
        for budget in budgets
    ]
    return [*found, Rule(strategy="cloud-feature", budget=None), Rule(strategy="cloud-image", budget=None)]


def answers(judged: Judged, rule: Rule) -> Answers:
    """What the whole system says under a rule."""
    scores, stream = judged.scores, judged.target.stream
    leaves1 = _passes(scores["score1"], rule.threshold1, rule.strategy in {"device", "fallback"})
    leaves2 = _passes(scores["score2"], rule.threshold2, rule.strategy == "device")
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
    )


def _passes(values: NDArray[Any], threshold: float | None, otherwise: bool) -> Mask:
    if threshold is None:
        return np.full(len(values), otherwise)
    passes: Mask = values >= np.float32(threshold)
    return passes


def _mixes(judged: Judged, rule: Rule, half: Mask) -> tuple[MixResult, ...]:
    target, stream = judged.target, judged.target.stream
    return by_rho(
        TestMix(stream.indices[half], stream.is_id[half], stream.ood_wanted),
        answers(judged, rule).only(half),
        labels=target.dataset.y_test,
        own=target.manifest.classes.own,
        rhos=judged.rhos,
        seed=judged.seed,
    )
