"""Evaluation against a literal recount, image by image."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from harmony.core.adaptive import SUREST, AdaptiveThreshold, HeldOut
from harmony.core.checkpoint import open_checkpoint
from harmony.core.config import recorded_config
from harmony.core.data import Dataset
from harmony.core.errors import ContractMismatch
from harmony.core.mix import test_mix as mix_of
from harmony.core.preprocess import Preprocessor
from harmony.core.scores import own_mass
from harmony.core.sealed import MANIFEST, SEAL, seal
from harmony.train import Evaluation, evaluate, train
from harmony.train.answers import answers
from harmony.train.evaluate import ranking
from harmony.train.federation import federation
from harmony.train.models import load_back_end, load_front_end


@pytest.fixture(scope="module")
def trained(images: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from harmony.core.config import make_config

    config = make_config(
        {
            "partition": {"kind": "classes", "clients": 4, "classes": 3},
            "architectures": ["resnet-w16-d1", "mobilenet-w8-d1"],
            "back_end_width": 8,
            "rounds": 20,
            "threads": 1,
            "batch": 8,
            "checkpoint_every": 20,
            "data": {"holdout": 0.4},  # of so few images, enough to keep a promise of 5 %
        }
    )
    return train(config, tmp_path_factory.mktemp("evaluate") / "run", dataset=images)


@pytest.fixture(scope="module")
def evaluation(trained: Path, images: Dataset) -> Evaluation:
    return evaluate(trained, images, rhos=(0.0, 0.4, 1.0))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_counts_are_those_of_a_loop_over_single_images(
    place: int, evaluation: Evaluation, trained: Path, images: Dataset
) -> None:
    manifest = open_checkpoint(trained)
    record = manifest.clients[1]
    found = evaluation.clients[1].curve[place]
    front_end, back_end = load_front_end(trained, manifest, record), load_back_end(trained, manifest, record)
    preprocess, own = Preprocessor(manifest.image), list(record.classes.own)
    mix = mix_of(images.y_test, own, found.rho, 0)
    right, right_server, at1, sent = [], [], [], []
    for index in mix.indices:
        with torch.no_grad():
            out = front_end(torch.from_numpy(preprocess(images.x_test[index : index + 1])))
            token = int(back_end(out.feature).argmax())
        assert out.gate1 is not None
        assert out.gate2 is not None
        server = next(label for label in range(10) if record.classes.tokens[label] == token)
        scores = [float(own_mass(gate.numpy(), np.array(own))[0]) for gate in (out.gate1, out.gate2)]
        local1, local2 = (own[int(logits[0, own].argmax())] for logits in (out.logits1, out.logits2))
        at1.append(scores[0] >= record.exits[0].threshold)
        sent.append(not at1[-1] and scores[1] < record.exits[1].threshold)
        answer = local1 if at1[-1] else server if sent[-1] else local2
        right.append(answer == images.y_test[index])
        right_server.append(server == images.y_test[index])
    count = len(mix.indices)
    # One image may sit on a threshold, where batched and single arithmetic differ in the last bit.
    assert abs(found.overall - np.mean(right)) <= 1.5 / count
    assert abs(found.server_only - np.mean(right_server)) <= 1.5 / count
    assert abs(found.exit1 - np.mean(at1)) <= 1.5 / count
    assert abs(found.offload - np.mean(sent)) <= 1.5 / count
    assert abs(found.id - np.mean(np.array(right)[mix.is_id])) <= 1.5 / count
    if found.rho:
        assert found.ood is not None
        assert abs(found.ood - np.mean(np.array(right)[~mix.is_id])) <= 1.5 / count


def test_a_threshold_that_follows_the_stream_is_fed_the_mix_in_its_order(
    evaluation: Evaluation, trained: Path, images: Dataset
) -> None:
    manifest = open_checkpoint(trained)
    record = manifest.clients[2]
    assert record.held_out is not None
    adaptive = AdaptiveThreshold(record.held_out, record.exits[1].threshold)
    mix, own = mix_of(images.y_test, record.classes.own, 1.0, 0), np.asarray(record.classes.own)
    front_end, preprocess = load_front_end(trained, manifest, record), Preprocessor(manifest.image)
    with torch.no_grad():
        out = front_end(torch.from_numpy(preprocess(images.x_test[mix.indices])))
    assert out.gate1 is not None
    assert out.gate2 is not None
    first, second = (own_mass(gate.numpy(), own).tolist() for gate in (out.gate1, out.gate2))
    sent = []
    for one, two in zip(first, second, strict=True):
        score = SUREST if one >= record.exits[0].threshold else two
        sent.append(score < adaptive.judge(score))
    found = evaluation.clients[2].curve[2]
    assert found.offload_adaptive == pytest.approx(np.mean(sent), abs=1.5 / len(sent))
    assert found.adaptive is not None
    assert found.adaptive_id is not None
    assert found.adaptive_ood is not None
    inside = mix.is_id.mean()
    assert found.adaptive == pytest.approx(inside * found.adaptive_id + (1 - inside) * found.adaptive_ood)


def test_of_another_promise_the_thresholds_are_those_that_it_would_have_set(
    evaluation: Evaluation, trained: Path, images: Dataset, tmp_path: Path
) -> None:
    """The same networks, calibrated anew, give the same figures; the run's own promise is 5 %."""
    manifest = open_checkpoint(trained)
    found = {one.budget: one for one in evaluation.budgets}
    assert found[0.05].adaptive == pytest.approx([one.adaptive for one in evaluation.mean])
    clients = []
    for record in manifest.clients:
        assert record.held_out is not None
        second = record.exits[1].model_copy(update={"threshold": record.held_out.threshold(0.2), "budget": 0.2})
        clients.append(record.model_copy(update={"exits": (record.exits[0], second)}))
    other = tmp_path / "checkpoint"
    shutil.copytree(trained, other)
    for name in (MANIFEST, SEAL):
        (other / name).unlink()
    seal(other, manifest.model_copy(update={"clients": tuple(clients)}))
    anew = evaluate(other, images, rhos=(0.0, 0.4, 1.0))
    assert found[0.2].adaptive == pytest.approx([one.adaptive for one in anew.mean])
    sent = [one.id_to_server for one in evaluation.budgets]
    assert sent == sorted(sent)
    assert sent[-1] > sent[0]


def test_the_clouds_word_is_calibrated_on_held_out_images(
    evaluation: Evaluation, trained: Path, images: Dataset
) -> None:
    """20 % may be sent, of which the cloud answers what it takes for foreign; at most 5 % of own images are to be."""
    manifest = open_checkpoint(trained)
    members = federation(recorded_config(manifest.config), images)
    right, answered = [], []
    for record, client in zip(manifest.clients, members.clients, strict=True):
        front_end, back_end = load_front_end(trained, manifest, record), load_back_end(trained, manifest, record)
        mix, own = mix_of(images.y_test, record.classes.own, 1.0, 0), np.asarray(record.classes.own)

        both = np.concatenate([images.x_train[client.holdout], images.x_test[mix.indices]])
        said, known = answers(front_end, back_end, record, Preprocessor(manifest.image), both), len(client.holdout)
        assert said.gate1 is not None
        assert said.gate2 is not None
        at1 = own_mass(said.gate1, own) >= record.exits[0].threshold
        surety, mass = np.where(at1, np.float32(SUREST), own_mass(said.gate2, own)), own_mass(said.server, own)
        threshold = np.sort(surety[:known])[int(0.2 * (known + 1)) - 1]
        words = np.where(surety < threshold, mass, np.inf)[:known]
        word = np.sort(words)[int(0.05 * (known + 1)) - 1]
        held_out = HeldOut.of(surety[:known])
        assert held_out is not None
        adaptive = AdaptiveThreshold(held_out, float(threshold))
        sent = np.array([score < adaptive.judge(score) for score in surety[known:].tolist()])
        cloud = sent & (mass[known:] < word)
        local = own[np.where(at1, said.logits1.argmax(1), said.logits2.argmax(1))[known:]]
        answer = np.where(cloud, said.server.argmax(1)[known:], local)
        right.append((answer == images.y_test[mix.indices]).mean())
        answered.append(cloud[mix.is_id].mean())
    found = {one.budget: one for one in evaluation.budgets}
    assert found[0.2].word is not None
    # One image may sit on a threshold, where other batches' arithmetic differs in the last bit.
    assert found[0.2].word[-1] == pytest.approx(np.mean(right), abs=5e-3)
    assert found[0.2].id_by_server == pytest.approx(np.mean(answered), abs=5e-3)
    assert np.mean(answered) < found[0.2].id_to_server
    assert found[0.05].word is None  # what may be sent, may be answered


def test_on_other_images_there_is_no_word_but_what_the_checkpoint_knows(
    evaluation: Evaluation, trained: Path, images: Dataset
) -> None:
    renamed = Dataset("other", images.x_train, images.y_train, images.x_test, images.y_test, images.class_names)
    other = evaluate(trained, renamed, rhos=(0.0, 0.4, 1.0))
    assert [one.word for one in other.budgets] == [None] * len(evaluation.budgets)
    assert [one.adaptive for one in other.budgets] == [one.adaptive for one in evaluation.budgets]


def test_held_out_scores_of_an_older_checkpoint_are_measured_anew(
    evaluation: Evaluation, trained: Path, images: Dataset, tmp_path: Path
) -> None:
    old = tmp_path / "checkpoint"
    shutil.copytree(trained, old)
    manifest = open_checkpoint(old)
    clients = tuple(one.model_copy(update={"held_out": None}) for one in manifest.clients)
    for name in (MANIFEST, SEAL):
        (old / name).unlink()
    seal(old, manifest.model_copy(update={"clients": clients}))
    assert evaluate(old, images, rhos=(0.0, 0.4, 1.0)) == evaluation


def test_the_same_id_images_are_in_every_mix(evaluation: Evaluation) -> None:
    for client in evaluation.clients:
        assert len({(one.id, one.client_id, one.server_id, one.id_to_server) for one in client.curve}) == 1
        assert client.curve[0].ood is None
        assert client.curve[0].overall == client.curve[0].id


def test_means_and_the_worst_tenth(evaluation: Evaluation) -> None:
    for place, mean in enumerate(evaluation.mean):
        overall = [client.curve[place].overall for client in evaluation.clients]
        assert mean.overall == pytest.approx(np.mean(overall))
        assert evaluation.worst[place] == min(overall)


def test_ranking_counts_pairs_and_ties_half() -> None:
    random = np.random.default_rng(0)
    inside = random.integers(0, 6, 40).astype(np.float32)
    outside = random.integers(-2, 4, 30).astype(np.float32)
    pairs = [(1.0 if a > b else 0.5 if a == b else 0.0) for a in inside for b in outside]
    auroc, fpr95 = ranking(inside, outside)
    assert auroc == pytest.approx(np.mean(pairs))
    kept = next(t for t in sorted(set(inside), reverse=True) if np.mean(inside >= t) >= 0.95)
    assert fpr95 == pytest.approx(np.mean(outside >= kept))
    assert ranking(inside, outside[:0]) == (None, None)


def test_other_images_or_classes_are_refused(trained: Path, images: Dataset) -> None:
    small = Dataset(
        "small", images.x_train[:, :20], images.y_train, images.x_test[:, :20], images.y_test, images.class_names
    )
    with pytest.raises(ContractMismatch, match="28x28x1"):
        evaluate(trained, small)
    renamed = Dataset("renamed", images.x_train, images.y_train, images.x_test, images.y_test, tuple("abcdefghij"))
    with pytest.raises(ContractMismatch, match="classes"):
        evaluate(trained, renamed)
