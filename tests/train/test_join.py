"""A client that comes later: what it begins with, what it learns from whom, and what becomes of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harmony.core.checkpoint import client_file, load_tensors, open_checkpoint
from harmony.core.config import make_config
from harmony.core.data import Dataset
from harmony.core.errors import ConfigError, ContractMismatch, Diverged, RunError, RunExists
from harmony.core.models import FrontEnd
from harmony.core.preprocess import Preprocessor
from harmony.core.spec import Architecture
from harmony.train import evaluate, train
from harmony.train.distil import distil, masters
from harmony.train.join import Joined, Newcomer, join, own_labels
from harmony.train.models import load_back_end, load_front_end
from harmony.train.widen import widened

OWN = (1, 4, 8)


def config(**overrides: Any) -> Any:
    base = {
        "partition": {"kind": "classes", "clients": 4, "classes": 3},
        "architectures": ["resnet-w16-d1", "mobilenet-w8-d1", "resnet-w8-d2", "mobilenet-w16-d1"],
        **{"back_end_width": 8, "rounds": 2, "steps": 2, "batch": 8, "harmony": {"personalize_epochs": 1}},
    }
    return make_config(base | overrides)


@pytest.fixture(scope="module")
def run(images: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a small run."""
    return train(config(), tmp_path_factory.mktemp("join") / "run", dataset=images)


def newcomer(architecture: str = "patch-w8-d1", **changes: Any) -> Newcomer:
    return Newcomer(architecture=Architecture.parse(architecture), own=OWN, **{"steps": 2, "images": 60} | changes)


@pytest.fixture(scope="module")
def joined(run: Path, images: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Joined:
    return join(run, newcomer(), images, tmp_path_factory.mktemp("joined") / "out")


def test_the_new_checkpoint_is_the_old_one_with_one_client_more(run: Path, joined: Joined, images: Dataset) -> None:
    before, after = open_checkpoint(run), open_checkpoint(joined.checkpoint)
    assert after.clients[:-1] == before.clients
    assert {name: after.files[name] for name in before.files} == before.files
    assert set(after.files) - set(before.files) == {client_file(4)}
    record = after.clients[-1]
    assert record == joined.client
    assert (record.index, str(record.architecture), record.classes.own) == (4, "patch-w8-d1", OWN)
    assert record.classes.tokens == before.clients[0].classes.tokens
    assert (record.train_images, record.holdout_images) == (54, 6)
    result = evaluate(joined.checkpoint, images, rhos=(0, 1))
    assert [one.client for one in result.clients] == [0, 1, 2, 3, 4]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    run: Path, joined: Joined, images: Dataset, tmp_path: Path
) -> None:
    again = join(run, newcomer(), images, tmp_path / "again")
    other = join(run, newcomer(seed=1), images, tmp_path / "other")
    hashes = [open_checkpoint(one.checkpoint).files[client_file(4)].sha256 for one in (joined, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_family_that_the_run_has_gives_its_weights_where_both_have_them(
    run: Path, images: Dataset, tmp_path: Path
) -> None:
    """Of resnet there are w16-d1 and w8-d2: the first has more of w24-d1, and all of w8-d1."""
    trained = masters(run, open_checkpoint(run))
    for architecture, begun in (("resnet-w24-d1", "resnet-w16-d1"), ("resnet-w8-d2", "resnet-w8-d2")):
        outcome = join(run, newcomer(architecture, steps=0), images, tmp_path / architecture)
        assert str(outcome.begun) == begun
        mine = load_tensors(outcome.checkpoint / client_file(4))["stage1.0.second.weight"]
        theirs = trained[Architecture.parse(begun)].state_dict()["stage1.0.second.weight"].numpy()
        side = len(theirs)
        # personalisation moves weights afterwards, by a little
        assert np.abs(mine[:side, :side] - theirs).max() < 0.05 < np.abs(theirs).max()
    assert join(run, newcomer(steps=0), images, tmp_path / "patch").begun is None


def test_masters_are_means_over_the_clients_of_an_architecture(images: Dataset, tmp_path: Path) -> None:
    run = train(config(architectures=["resnet-w8-d1", "patch-w8-d1"]), tmp_path / "run", dataset=images)
    manifest = open_checkpoint(run)
    trained = masters(run, manifest)
    assert set(map(str, trained)) == {"resnet-w8-d1", "patch-w8-d1"}
    each = [load_front_end(run, manifest, manifest.clients[index]).state_dict() for index in (0, 2)]
    for name, value in trained[manifest.clients[0].architecture].state_dict().items():
        torch.testing.assert_close(value, (each[0][name] + each[1][name]) / 2)
    assert not any(value.requires_grad for one in trained.values() for value in one.parameters())


def test_features_come_closer_to_the_teachers_on_classes_that_the_newcomer_never_sees(
    run: Path, images: Dataset
) -> None:
    manifest = open_checkpoint(run)
    teacher = masters(run, manifest)[Architecture.parse("resnet-w16-d1")]
    back_end = load_back_end(run, manifest, manifest.clients[0]).requires_grad_(False)
    scaled = Preprocessor(manifest.image)
    own, foreign = (
        torch.from_numpy(scaled(images.x_train[np.isin(images.y_train, OWN) == mine])) for mine in (True, False)
    )
    torch.manual_seed(0)
    front_end = FrontEnd(Architecture.parse("patch-w16-d1"), manifest.image, manifest.feature, outputs=10, gate=10)
    exit2 = {name: value.clone() for name, value in front_end.exit2.state_dict().items()}

    @torch.no_grad()
    def distance() -> float:
        goal = teacher.upper(teacher.lower(foreign))
        return float((front_end.upper(front_end.lower(foreign)) - goal).square().mean() / goal.var())

    before, losses = distance(), []
    random = torch.Generator().manual_seed(0)
    distil(
        front_end, teacher, back_end, lambda step: own[step % 3 :: 3],
        steps=30, rate=4e-3, random=random, on_step=lambda done, loss: losses.append(loss),
    )  # fmt: skip
    assert distance() < before / 2
    assert len(losses) == 30
    assert all(torch.equal(value, exit2[name]) for name, value in front_end.exit2.state_dict().items())


def test_widened_images_are_half_as_they_were_and_half_new() -> None:
    given = torch.rand(10, 3, 12, 9, generator=torch.Generator().manual_seed(0))
    one, two = (widened(given, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == given.shape
    assert torch.equal(one[:5], given[:5])
    assert (one[5:] - given[5:]).abs().flatten(1).max(1).values.min() > 0.1
    assert 0 <= float(one.min()) <= float(one.max()) <= 1, "nothing brighter or darker than what there was"


def test_classes_as_a_user_writes_them() -> None:
    names = ("shoe", "bag", "3", "shirt")
    assert own_labels("4", names, 0) == (0, 1, 2, 3)
    assert len({own_labels("2", names, seed) for seed in range(30)}) == 6
    assert own_labels("shirt, 0", names, 0) == (0, 3)
    assert own_labels("bag", names, 0) == own_labels("1,", names, 0) == (1,)
    assert own_labels("3,", names, 0) == (2,), "a name goes before a label"
    for wrong in ("0", "5", "", ",", "1,4", "hat", "1.5", "-1", "²"):
        with pytest.raises(ConfigError, match="--classes"):
            own_labels(wrong, names, 0)


def test_what_cannot_be_joined_is_named_before_anything_is_trained(run: Path, images: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"--images: class 'Trouser' has 60 training images, 100 are needed \(use at"):
        join(run, newcomer(images=300), images, out)
    other = Dataset("other", images.x_train[:, :20], images.y_train, images.x_test, images.y_test, images.class_names)
    with pytest.raises(ContractMismatch, match="trained on 28x28x1"):
        join(run, newcomer(), other, out)
    rival = train(config(method="splitgp", exits={"score": "entropy"}), tmp_path / "rival", dataset=images)
    with pytest.raises(RunError, match="nobody can join a run of splitgp"):
        join(rival, newcomer(), images, out)
    merged = train(config(data={"own_test": 0.25}), tmp_path / "merged", dataset=images)
    with pytest.raises(RunError, match=r"data\.own_test = 0"):
        join(merged, newcomer(), images, out)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(RunExists, match="out"):
        join(run, newcomer(), images, out)


def test_a_loss_that_is_no_number_stops_it_and_nothing_is_written(
    run: Path, images: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harmony.train.distil._loss", lambda front_end, *_: next(front_end.parameters()).sum() * np.nan)
    with pytest.raises(Diverged, match=r"no longer finite after 1 batches \(lower --lr"):
        join(run, newcomer(), images, tmp_path / "out")
    assert not list(tmp_path.iterdir())
