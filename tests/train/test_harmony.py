"""What the parts of HARMONY do, seen from outside."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from harmony.core.config import TrainConfig, make_config
from harmony.core.data import Dataset
from harmony.core.models import FrontEnd
from harmony.train.federation import Federation, federation
from harmony.train.harmony import Harmony
from harmony.train.inner import adapted, personal_loss
from harmony.train.losses import masked_cross_entropy
from harmony.train.supernet import look


def changed(config: TrainConfig, **parts: Any) -> TrainConfig:
    value = config.model_dump(mode="json")
    return make_config(value | {"harmony": value["harmony"] | parts})


@torch.no_grad()
def held_out_loss(members: Federation, client: int, tensors: dict[str, NDArray[Any]]) -> float:
    """Both exits' cross-entropy among the client's own classes."""
    one, classes = members.clients[client], members.dataset.classes
    front_end = FrontEnd(one.architecture, members.image, members.feature, outputs=classes, gate=classes)
    front_end.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    out, tokens = front_end(members.inputs(members.dataset.x_train[one.holdout])), members.tokens_of(one.holdout)
    own = members.own[client].expand(len(tokens), -1)
    return sum(float(masked_cross_entropy(logits, tokens, own)) for logits in (out.logits1, out.logits2))


def test_with_simulation_every_client_meets_every_architecture(config: TrainConfig, images: Dataset) -> None:
    method = Harmony(federation(config, images))
    met: dict[int, set[str]] = {client: set() for client in range(4)}
    for step in range(40):
        visits = list(method.visits(step, [0, 1, 2, 3]))
        assert sorted(client for visit in visits for client in visit.clients) == [0, 1, 2, 3]
        for visit in visits:
            for client in visit.clients:
                met[client].add(str(visit.architecture))
    assert all(one == set(config.architectures) for one in met.values())


def test_without_simulation_clients_keep_to_their_own(config: TrainConfig, images: Dataset) -> None:
    method = Harmony(federation(changed(config, simulate=False), images))
    for step in range(10):
        for visit in method.visits(step, [0, 1, 2, 3]):
            assert all(config.architectures[client] == str(visit.architecture) for client in visit.clients)


def test_contrast_can_be_switched_on_and_changes_what_is_learnt(config: TrainConfig, images: Dataset) -> None:
    plain, contrasted = (Harmony(federation(changed(config, contrast=weight), images)) for weight in (0.0, 1.0))
    off, on = plain.round(0), contrasted.round(0)
    assert not off.terms["contrast"].any()
    assert bool((on.terms["contrast"] > 0).all())
    weight = "back_end/classify.weight"
    assert not torch.equal(plain.state()[weight], contrasted.state()[weight])


def test_all_families_share_the_exit_at_the_cut_and_clients_of_one_architecture_their_extractor(
    config: TrainConfig, images: Dataset
) -> None:
    config = changed(config, personalize="heads")
    config = make_config(config.model_dump(mode="json") | {"architectures": ["resnet-w16-d1", "mobilenet-w8-d1"]})
    method = Harmony(federation(config, images))
    method.round(0)
    clients = method.finish().clients
    for name in clients[0]:
        same = (clients[0][name] == clients[2][name]).all()
        assert same or ".head." in name
    assert (clients[0]["exit2.gate.weight"] == clients[1]["exit2.gate.weight"]).all()
    assert any((clients[0][name] != clients[2][name]).any() for name in clients[0] if ".head." in name)


def test_a_personal_head_is_kept_only_if_it_errs_less_on_held_out_images(config: TrainConfig, images: Dataset) -> None:
    """At an absurd learning rate the trained head is worse than the gate's rows, and those stay."""
    wild = make_config(changed(config, personalize="heads").model_dump(mode="json") | {"learning_rate": 10.0})
    method = Harmony(federation(wild, images))
    clients = method.finish().clients
    for tensors in clients.values():
        assert (tensors["exit2.head.weight"] == tensors["exit2.gate.weight"]).all()


def test_a_personal_front_end_is_kept_only_if_it_errs_less_on_held_out_images(
    config: TrainConfig, images: Dataset
) -> None:
    """At an absurd rate hardly anybody's is; at a sane one somebody's is, and its gates are still everybody's."""
    heads, wild, sane = (
        Harmony(federation(changed(config, **parts), images)).finish().clients
        for parts in (
            {"personalize": "heads"},
            {"personalize": "front-end", "personalize_rate": 10.0},
            {"personalize": "front-end", "personalize_rate": 1e-3},
        )
    )
    members, kept = federation(config, images), 0
    for client, tensors in wild.items():
        same = all((tensors[name] == heads[client][name]).all() for name in tensors)
        assert same or held_out_loss(members, client, tensors) < held_out_loss(members, client, heads[client])
        kept += not same
    assert kept < len(wild)
    moved = {name for client in heads for name in heads[client] if (heads[client][name] != sane[client][name]).any()}
    assert "exit2.trunk.0.0.weight" in moved
    assert any(name.startswith("stage2") for name in moved)
    assert not any(".gate." in name for name in moved)


def test_inner_steps_change_what_the_cloud_learns_from_and_reach_the_shared_weights(
    config: TrainConfig, images: Dataset
) -> None:
    """First order: the outer gradient at the adapted weights moves the shared ones, and adapting alone moves none."""
    plain, inner = (
        Harmony(federation(changed(config, inner_steps=steps, inner_share=1.0), images)) for steps in (0, 2)
    )
    before = {name: value.clone() for name, value in inner.state().items()}
    first, second = plain.round(0), inner.round(0)
    assert not torch.equal(first.terms["server"], second.terms["server"])
    assert all(value.is_leaf and value.requires_grad for value in inner.shared.values())
    names = [name for name in inner.state() if name.startswith("shared/")]
    assert all(not torch.equal(before[name], inner.state()[name]) for name in names)


def test_adapted_weights_err_less_on_their_support_batch_and_pass_gradients_on_unchanged(
    config: TrainConfig, images: Dataset
) -> None:
    members = federation(config, images)
    trunk, weights = Harmony(members).slice_of(members.clients[0].architecture)
    inputs, tokens = members.batch([0], 0)
    own = members.own[0].expand(len(tokens), -1)
    moved = adapted(trunk, weights, inputs, tokens, own, steps=3, rate=0.01)
    losses = [personal_loss(one, look(trunk, one, inputs), tokens, own).item() for one in (weights, moved)]
    assert losses[1] < losses[0]
    name = "stem.0.0.weight"
    (slope,) = torch.autograd.grad(moved[name].sum(), weights[name])
    assert torch.equal(slope, torch.ones_like(slope))
    assert moved["exit2.gate.weight"] is weights["exit2.gate.weight"]


def test_only_the_clients_drawn_for_a_round_take_part(config: TrainConfig, images: Dataset) -> None:
    half = make_config(config.model_dump(mode="json") | {"participation": 0.5})
    members = federation(half, images)
    drawn = [members.participants(index) for index in range(20)]
    assert all(len(one) == 2 for one in drawn)
    assert {client for one in drawn for client in one} == {0, 1, 2, 3}
    losses = Harmony(members).round(0).terms["server"]
    assert losses.nonzero().flatten().tolist() == drawn[0]


def test_state_and_restore_are_inverse(config: TrainConfig, images: Dataset) -> None:
    members = federation(config, images)
    one = Harmony(members)
    one.round(0)
    saved = {name: value.clone() for name, value in one.state().items()}
    two = Harmony(members)
    two.restore(saved)
    assert all(torch.equal(value, two.state()[name]) for name, value in saved.items())
    first, second = one.round(1), two.round(1)
    assert all(torch.equal(first.terms[name], second.terms[name]) for name in first.terms)
