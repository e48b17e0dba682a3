"""The rivals: what each shares and what it does not, and that a broken run goes on as if it had not been."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from harmony.cli.train import MethodName
from harmony.core.checkpoint import BACK_END, open_checkpoint
from harmony.core.config import METHOD_DEFAULTS, Method, TrainConfig
from harmony.core.data import Dataset
from harmony.core.errors import ArtifactError, ArtifactMissing
from harmony.export import export_run
from harmony.train import METHODS, Progress, evaluate, train
from harmony.train.federation import Federation, federation
from harmony.train.local import Local
from harmony.train.local_training import LocalTraining
from harmony.train.models import load_back_end

Settings = Callable[..., TrainConfig]
Rival = Callable[..., LocalTraining]
RIVALS = [name for name in METHODS if name != "harmony"]
WITH_OWN_BACK_ENDS = ["local", "fedproto", "fedtgp", "fedgh"]


def test_every_method_is_in_every_table() -> None:
    assert set(METHODS) == set(get_args(Method)) == set(get_args(MethodName)) == set(METHOD_DEFAULTS)


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", RIVALS)
def test_a_broken_run_goes_on_with_the_same_bits(
    name: str, rival_config: Settings, images: Dataset, tmp_path: Path
) -> None:
    """Broken in round 4, after the state of round 2: what a method keeps between rounds outside its state is lost."""

    def dying(progress: Progress) -> None:
        if progress.done == 3:
            raise Killed

    config, whole, broken = rival_config(name), tmp_path / "whole" / "run", tmp_path / "broken" / "run"
    train(config, whole, dataset=images)
    with pytest.raises(Killed):
        train(config, broken, dataset=images, on_progress=dying)
    train(config, broken, resume=True, dataset=images)
    names = {path.name for path in (whole / "checkpoint").iterdir()}
    assert names == {path.name for path in (broken / "checkpoint").iterdir()}
    for one in names:
        assert (whole / "checkpoint" / one).read_bytes() == (broken / "checkpoint" / one).read_bytes(), one


@pytest.mark.parametrize("name", RIVALS)
def test_to_peek_changes_nothing_and_gives_copies(name: str, rival: Rival) -> None:
    seen, unseen = (rival(name) for _ in range(2))
    for one in (seen, unseen):
        one.round(0)
    before = seen.peek()
    kept = {key: value.copy() for key, value in before.clients[1].items()}
    losses = [one.round(1) for one in (seen, unseen)]
    assert all(torch.equal(losses[0].terms[term], losses[1].terms[term]) for term in losses[0].terms)
    assert all(torch.equal(value, unseen.state()[key]) for key, value in seen.state().items())
    assert all((before.clients[1][key] == kept[key]).all() for key in kept)
    assert any((seen.peek().clients[1][key] != kept[key]).any() for key in kept)


@pytest.mark.parametrize("name", RIVALS)
def test_clients_of_one_architecture_start_alike(name: str, rival: Rival) -> None:
    trained = rival(name).peek()
    assert all((trained.clients[0][key] == trained.clients[2][key]).all() for key in trained.clients[0])


@pytest.mark.parametrize("name", RIVALS)
def test_a_round_costs_every_participant_its_own_batches_once(
    name: str, rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget that all methods share: `steps` batches a client and round, drawn by client and step alone."""
    drawn: list[tuple[list[int], int]] = []
    whole = Federation.batch

    def watching(self: Federation, clients: list[int], step: int) -> Any:
        drawn.append((list(clients), step))
        return whole(self, clients, step)

    monkeypatch.setattr(Federation, "batch", watching)
    method = rival(name, participation=0.5)
    members = method.federation.participants(1)
    assert len(members) == 2
    before = method.peek().clients
    losses = method.round(1)
    assert drawn == [([client], step) for client in members for step in (2, 3)]
    absent = next(client for client in range(4) if client not in members)
    assert all(float(values[absent]) == 0 for values in losses.terms.values())
    if name != "heterofl":  # whose clients keep nothing of their own
        after = method.peek().clients
        assert all((before[absent][key] == after[absent][key]).all() for key in before[absent])


@pytest.mark.parametrize("name", RIVALS)
def test_a_loss_that_is_no_number_is_named(name: str, rival: Rival) -> None:
    method = rival(name)
    method.front_ends[2].exit2.head.weight.data.fill_(float("inf"))
    assert method.round(0).culprit == ("exit2", 2)


@pytest.mark.parametrize("name", WITH_OWN_BACK_ENDS)
def test_own_back_ends_are_saved_found_and_answer(
    name: str, rival_config: Settings, images: Dataset, tmp_path: Path
) -> None:
    checkpoint = train(rival_config(name), tmp_path / "run", dataset=images)
    manifest = open_checkpoint(checkpoint)
    assert all(one.own_back_end for one in manifest.clients)
    assert not (checkpoint / BACK_END).exists()
    found = [load_back_end(checkpoint, manifest, one).state_dict() for one in manifest.clients]
    assert not torch.equal(found[0]["body.0.0.weight"], found[1]["body.0.0.weight"])
    before = evaluate(checkpoint, images, rhos=(1.0,))
    assert all(one.curve[0].server_ood is not None for one in before.clients)
    (checkpoint / "back_end-002.safetensors").unlink()
    with pytest.raises(ArtifactMissing, match=r"back_end-002"):
        evaluate(checkpoint, images)


@pytest.mark.parametrize("name", WITH_OWN_BACK_ENDS)
def test_there_is_no_one_back_end_to_export(name: str, rival_config: Settings, images: Dataset, tmp_path: Path) -> None:
    train(rival_config(name), tmp_path / "run", dataset=images)
    with pytest.raises(ArtifactError, match=rf"\({name}\) have a back end each") as raised:
        export_run(tmp_path / "run", tmp_path / "bundles", formats=("onnx",))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "bundles").exists()


def test_local_clients_learn_nothing_of_each_other(rival_config: Settings, images: Dataset) -> None:
    """With other images at another client, a client ends with the same bits."""
    changed = Dataset(
        images.name, images.x_train.copy(), images.y_train, images.x_test, images.y_test, images.class_names
    )
    members = federation(rival_config("local"), images)
    changed.x_train[members.clients[3].train] = 0
    methods = [Local(members), Local(dataclasses.replace(members, dataset=changed))]
    for method in methods:
        method.round(0)
    one, other = (method.peek() for method in methods)
    assert all((one.clients[0][key] == other.clients[0][key]).all() for key in one.clients[0])
    assert any((one.clients[3][key] != other.clients[3][key]).any() for key in one.clients[3])
    assert all((one.back_ends[0][key] == other.back_ends[0][key]).all() for key in one.back_ends[0])


def test_lg_fedavg_averages_the_back_end_and_no_front_end(rival: Rival) -> None:
    over: dict[str, Any] = {"architectures": ["resnet-w8-d1"], "learning_rate": 0.004, "muon_rate": 0.02}
    method, alone = rival("lg_fedavg", **over), rival("local", **over)
    method.round(0)
    alone.round(0)
    together, apart = method.peek(), alone.peek()
    for key, value in together.back_end.items():
        mean = np.mean([apart.back_ends[client][key] for client in range(4)], axis=0)
        np.testing.assert_allclose(value, mean, rtol=1e-5, atol=1e-7)
    for client in range(4):
        assert all((together.clients[client][key] == apart.clients[client][key]).all() for key in apart.clients[client])


def test_splitgp_keeps_a_share_within_an_architecture_and_nothing_across(rival: Rival) -> None:
    over: dict[str, Any] = {"splitgp": {"mixing": 0.25}, "learning_rate": 0.004, "muon_rate": 0.02}
    method, alone = rival("splitgp", **over), rival("local", **over)
    method.round(0)
    alone.round(0)
    together, apart = method.peek().clients, alone.peek().clients
    for key, value in together[1].items():
        expected = 0.25 * apart[1][key] + 0.75 * (apart[1][key] + apart[3][key]) / 2
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
