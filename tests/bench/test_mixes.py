"""One stream gives every mix, and the numbers are those of a stream of that mix alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harmony.bench.mixes import Answers, Replay, accuracy, by_rho, limited
from harmony.core.adaptive import SUREST, AdaptiveThreshold, HeldOut
from harmony.core.mix import TestMix
from harmony.core.mix import test_mix as make_mix

LABELS = np.random.default_rng(0).integers(0, 10, 1000)
OWN = (1, 4, 7)
RHOS = (0.0, 0.4, 1.0)
SCORES = np.random.default_rng(1).normal(np.where(np.isin(LABELS, OWN), 3, -1), 1).astype(np.float32)
FIXED = 1.5
HELD_OUT = HeldOut(images=100, scores=tuple(np.linspace(0.7, 3, 51).tolist()))


def _answer(mix: TestMix) -> Answers:
    """A device that answers as a fixed function of the image's index, so that any stream can be checked alone."""
    index, truth = mix.indices, LABELS[mix.indices]
    exits = np.array(["exit1", "exit2", "cloud"])[index % 3]
    local = np.where(index % 5 == 0, (truth + 1) % 10, truth)
    server = np.where(index % 7 == 0, (truth + 1) % 10, truth)
    label = np.where(exits == "cloud", server, local)
    return Answers(
        truth, mix.is_id, exits, label, local, exits == "cloud", np.zeros(len(index), bool), Replay(local, server)
    )


def test_a_smaller_mix_is_cut_out_of_the_largest() -> None:
    stream = make_mix(LABELS, OWN, 1.0, 3)
    found = by_rho(stream, _answer(stream), labels=LABELS, own=OWN, rhos=RHOS, seed=3)
    assert [one.rho for one in found] == list(RHOS)
    for one in found:
        alone = make_mix(LABELS, OWN, one.rho, 3)
        answers = _answer(alone)
        assert one.accuracy == accuracy(answers)
        assert (one.n_id, one.n_ood) == (int(alone.is_id.sum()), int((~alone.is_id).sum()))
        assert one.cloud == pytest.approx(float(np.mean(answers.exits == "cloud")))
        assert one.exit1 + one.exit2 + one.cloud == pytest.approx(1)


def _following(mix: TestMix) -> Answers:
    """A device whose threshold of exit 2 follows the stream, image by image; the cloud is away for every 30th."""
    adaptive, plain = AdaptiveThreshold(HELD_OUT, FIXED), _answer(mix)
    assert plain.replay is not None
    surety = np.where(plain.exits == "exit1", SUREST, SCORES[mix.indices]).astype(np.float32)
    unsure = np.array([score < adaptive.judge(score) for score in surety.tolist()])
    away = unsure & (mix.indices % 30 == 0)
    sent = unsure & ~away
    exits = np.where(plain.exits == "exit1", "exit1", np.where(sent, "cloud", "exit2"))
    label = np.where(sent, plain.replay.server, plain.local)
    return replace(plain, exits=exits, label=label, unsure=unsure, degraded=away, surety=surety)


def test_at_a_smaller_rho_a_threshold_that_follows_goes_the_way_of_that_stream() -> None:
    stream = make_mix(LABELS, OWN, 1.0, 3)
    whole = _following(stream)
    found = by_rho(
        stream, whole, labels=LABELS, own=OWN, rhos=RHOS, seed=3, follow=lambda: AdaptiveThreshold(HELD_OUT, FIXED)
    )
    cut = by_rho(stream, whole, labels=LABELS, own=OWN, rhos=RHOS, seed=3)
    for one in found:
        alone = _following(make_mix(LABELS, OWN, one.rho, 3))
        assert one.accuracy == accuracy(alone)
        assert one.unsure == float(np.mean(alone.unsure))
        # Who was answered at the largest ρ, but would have found the cloud away here, is not known.
        assert abs(one.cloud - float(np.mean(alone.exits == "cloud"))) <= 1 / 30
    assert found[0].cloud < 0.5 * cut[0].cloud
    assert found[-1] == cut[-1]


def test_accuracy_by_part() -> None:
    found = accuracy(
        Answers(
            truth=np.array([0, 1, 2, 3]),
            is_id=np.array([True, True, False, False]),
            exits=np.array(["exit1", "cloud", "cloud", "exit2"]),
            label=np.array([0, 9, 2, 9]),
            local=np.array([0, 1, 9, 9]),
            unsure=np.array([False, True, True, False]),
            degraded=np.zeros(4, bool),
            replay=Replay(exit2=np.array([9, 1, 2, 9]), server=np.array([9, 9, 2, 3])),
        )
    )
    assert found.model_dump() == {"overall": 0.5, "id": 0.5, "ood": 0.5, "client": 0.5, "server": 0.5, "oracle": 0.75}


def test_what_was_not_measured_is_none() -> None:
    mix = make_mix(LABELS, OWN, 0.0, 0)
    answers = _answer(mix)
    (found,) = by_rho(mix, Answers(**{**vars(answers), "replay": None}), labels=LABELS, own=OWN, rhos=(0.0,), seed=0)
    assert found.keep_ood is None
    assert (found.accuracy.ood, found.accuracy.server, found.accuracy.oracle) == (None, None, None)


def test_a_limit_keeps_order_and_proportion() -> None:
    mix = make_mix(LABELS, OWN, 1.0, 0)
    part = limited(mix, 40)
    assert len(part.indices) == 40
    assert np.count_nonzero(part.is_id) == 20
    assert [index for index in mix.indices if index in set(part.indices)] == list(part.indices)
    assert limited(mix, 10**6) is mix
