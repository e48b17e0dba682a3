"""What is learnt is used: new classes, better answers, thresholds that fit; what is no better is not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harmony.core.adaptive import HeldOut
from harmony.core.bundle import VECTORS, open_device_bundle, read_vectors
from harmony.core.inspection import inspect
from harmony.core.sealed import digest_of
from harmony.device import Device, verify
from harmony.device.personal import Budget, Plan, Wish, personalize
from harmony.device.personal.data import read_data

MakeBundle = Callable[..., Path]
QUICK = Plan(epochs=30, rate=2e-2)


def test_heads_learn_classes_that_the_bundle_did_not_hold(bundle: Path, photos: Path) -> None:
    old, before = open_device_bundle(bundle), read_vectors(bundle / VECTORS)
    digest = digest_of(bundle)
    outcome = personalize(bundle, str(photos), Wish(heads=QUICK), Budget())
    assert outcome.adopted
    assert (outcome.own_before, outcome.own_after) == (("ant", "bee", "cat"), ("bee", "cat", "dog", "eel"))
    assert (outcome.train_images, outcome.holdout_images) == (32, 8)
    assert outcome.before <= 0.5
    assert outcome.after > 0.8
    new = open_device_bundle(bundle)
    assert new.classes.own == (1, 2, 3, 4)
    assert new.classes.tokens == old.classes.tokens
    assert new.personal is not None
    assert (new.personal.version, new.personal.parent, new.personal.origin) == (1, digest, digest)
    assert new.parameters == old.parameters + 2 * 9  # a row of 8 weights and a bias, at both exits
    (check,) = verify(bundle).engines
    assert check.max_error == 0
    found = inspect(bundle)
    assert found.manifest == new
    assert [one.name for one in found.programs] == ["exit1", "exit2", "head step", "front end step"]
    after = read_vectors(bundle / VECTORS)
    for name in ("image", "hidden", "feature", "gate1", "gate2"):  # the cloud is asked with the same features
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6, atol=1e-6)
    assert after["logits1"].shape == (3, 4)


def test_a_program_for_wider_heads_teaches_the_same(make_bundle: MakeBundle, photos: Path, tmp_path: Path) -> None:
    """Exits may look at numbers of different counts, and one program trains both heads."""
    usual = make_bundle(tmp_path / "usual")
    training = open_device_bundle(usual).training
    assert training is not None
    wide = {"head": {"onnxruntime": "wide_step.onnx"}, "embedding": training.embedding + 4}
    wider = make_bundle(tmp_path / "wider", training=training.model_copy(update=wide))
    outcomes = [personalize(one, str(photos), Wish(heads=QUICK), Budget()) for one in (usual, wider)]
    assert outcomes[0].adopted
    assert outcomes[0].after == outcomes[1].after
    expected, found = (read_vectors(one / VECTORS) for one in (usual, wider))
    for name in ("logits1", "logits2"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)
    assert open_device_bundle(wider).parameters == open_device_bundle(usual).parameters


def test_the_device_answers_with_what_was_learnt(bundle: Path, photos: Path) -> None:
    outcome = personalize(bundle, str(photos), Wish(heads=QUICK), Budget())
    manifest = open_device_bundle(bundle)
    data = read_data(str(photos), manifest.image, manifest.classes)
    device = Device.open(bundle)
    right = [device.answer(data.images[one]).local_label == data.labels[one] for one in data.holdout]
    assert np.mean(right) == outcome.after


def test_thresholds_keep_their_promise_on_held_out_images(bundle: Path, photos: Path) -> None:
    personalize(bundle, str(photos), Wish(heads=QUICK), Budget())
    manifest = open_device_bundle(bundle)
    data, device = read_data(str(photos), manifest.image, manifest.classes), Device.open(bundle)
    answers = [device.answer(data.images[one]) for one in data.holdout]
    assert sum(one.exit != "exit1" for one in answers) <= 0.2 * len(answers) + 1
    assert manifest.exits[0].threshold != 0


def test_thresholds_set_by_hand_stay(make_bundle: MakeBundle, photos: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", budget=None)
    assert personalize(bundle, str(photos), Wish(heads=QUICK), Budget()).adopted
    assert [one.threshold for one in open_device_bundle(bundle).exits] == [0, 0]


def test_scores_that_a_stream_is_compared_to_are_measured_anew(
    make_bundle: MakeBundle, photos: Path, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "b", held_out=HeldOut.of(np.zeros(3, np.float32)))
    personalize(bundle, str(photos), Wish(heads=QUICK), Budget())
    held_out = open_device_bundle(bundle).held_out
    assert held_out is not None
    assert held_out.images == 8


def test_what_is_no_better_is_not_put_into_use(bundle: Path, photos: Path) -> None:
    assert personalize(bundle, str(photos), Wish(heads=QUICK), Budget()).adopted
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    outcome = personalize(bundle, str(photos), Wish(heads=Plan(epochs=1, rate=50.0)), Budget())
    assert not outcome.adopted
    assert outcome.version == 1
    assert f"{outcome.before:.1%} before, {outcome.after:.1%} after" in outcome.words
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_the_same_seed_gives_the_same_bundle(make_bundle: MakeBundle, photos: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        place = make_bundle(tmp_path / name / "b")
        personalize(place, str(photos), Wish(heads=QUICK), Budget())
        digests.append(digest_of(place))
    assert digests[0] == digests[1]


def test_the_whole_front_end_learns_and_says_how_far_features_moved(
    bundle: Path, photos: Path, cloud_bundle: Path
) -> None:
    old = read_vectors(bundle / VECTORS)
    wish = Wish(what="front-end", heads=Plan(2, 1e-3), front_end=Plan(15, 1e-2), back_end=cloud_bundle)
    outcome = personalize(bundle, str(photos), wish, Budget())
    assert outcome.adopted
    assert outcome.after > outcome.before
    assert outcome.moved is not None
    assert outcome.moved_others is not None
    new = read_vectors(bundle / VECTORS)
    moved = np.linalg.norm((new["feature"] - old["feature"]).reshape(3, -1), axis=1)
    size = np.linalg.norm(old["feature"].reshape(3, -1), axis=1)
    assert outcome.moved_others.relative == pytest.approx(float((moved / size).mean()), rel=1e-4)
    assert outcome.moved.relative > 0.01
    assert outcome.cloud is not None
    assert 0 <= outcome.cloud.before <= 1
    verify(bundle)


def test_no_torch_is_needed(
    bundle: Path, photos: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    script = (
        "from harmony.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    sys.stderr.write('torch' if any(one.partition('.')[0] == 'torch' for one in sys.modules) else 'none')\n"
    )
    done = run_python(script, "personalize", str(bundle), "--data", str(photos), "--what", "front-end", "--json")
    assert done.stderr == "none"
    told = json.loads(done.stdout)
    assert (told["adopted"], told["version"], told["what"]) == (True, 1, "front-end")
    assert 20 < told["peak_bytes"] / 2**20 < 150  # its own, not what the process that started it has, with torch


def test_seconds_that_are_over_end_the_learning_not_the_work(
    bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget, looked = Budget(seconds=3600), []

    def spent() -> bool:
        looked.append(1)
        return len(looked) > 5

    monkeypatch.setattr(budget, "spent", spent)
    outcome = personalize(bundle, str(photos), Wish(heads=Plan(epochs=1000, rate=2e-2)), budget)
    assert 0 < outcome.steps < 20
