"""What the rivals' servers do, against the formulas of their papers written out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harmony.train.fedgh import FedGH
from harmony.train.fedproto import FedProto
from harmony.train.fedtgp import FedTGP, centre_gap, margin_contrast
from harmony.train.heterofl import HeteroFL, average_elements
from harmony.train.local_training import LocalTraining
from harmony.train.method import Losses
from harmony.train.prototypes import NearestPrototype, Uploads, nearest

Rival = Callable[..., LocalTraining]
UPLOADS = Uploads(
    means=torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [0.0, 6.0], [9.0, 0.0]]),
    tokens=torch.tensor([1, 1, 2, 2, 0]),
    clients=torch.tensor([0, 1, 1, 3, 3]),
    images=torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0]),
)


def test_an_element_becomes_its_mean_over_the_slices_that_hold_it() -> None:
    torch.manual_seed(0)
    large, narrow = (nn.ModuleDict({"head": nn.Linear(width, 3)}) for width in (4, 2))
    slices = [copy.deepcopy(large), narrow]
    for one in slices:
        for value in one.parameters():
            value.data.normal_()
    rows = torch.tensor([[True, True, False], [False, True, False]])
    (wide, wide_bias), (slim, slim_bias) = ([value.detach() for value in one.parameters()] for one in slices)
    weight, bias = (value.detach().clone() for value in large.parameters())
    weight[0], bias[0] = wide[0], wide_bias[0]
    weight[1] = torch.cat([(wide[1, :2] + slim[1]) / 2, wide[1, 2:]])
    bias[1] = (wide_bias[1] + slim_bias[1]) / 2
    average_elements(large, slices, rows)
    torch.testing.assert_close([value.detach() for value in large.parameters()], [weight, bias])


def test_heterofl_clients_are_slices_of_one_network_a_family(rival: Rival) -> None:
    method = rival("heterofl", architectures=["resnet-w16-d1", "mobilenet-w8-d1", "resnet-w8-d2", "mobilenet-w16-d1"])
    assert isinstance(method, HeteroFL)
    untouched = dict(method.large["resnet"].named_parameters())["stage1.1.second.weight"].detach().clone()
    assert untouched.shape[:2] == (16, 16), "as wide as the one and as deep as the other"
    method.round(0)
    for client in method.federation.clients:
        large = dict(method.large[client.architecture.family].named_parameters())
        for name, value in method.front_ends[client.index].named_parameters():
            assert torch.equal(value, large[name][tuple(slice(0, side) for side in value.shape)]), name
    after = dict(method.large["resnet"].named_parameters())["stage1.1.second.weight"].detach()
    assert torch.equal(after[8:], untouched[8:]), "which nobody holds"
    assert not torch.equal(after[:8, :8], untouched[:8, :8])


def test_heterofl_leaves_rows_alone_of_which_no_client_holds_the_class(rival: Rival) -> None:
    for masked in (True, False):
        method = rival("heterofl", participation=0.25, heterofl={"masked": masked})
        (client,) = method.federation.participants(0)
        before = method.back_ends[0].classify.weight.detach().clone()
        method.round(0)
        moved = (method.back_ends[0].classify.weight != before).any(1)
        assert torch.equal(moved, method.federation.own[client] if masked else torch.ones_like(moved))


def test_the_nearest_prototype_is_a_linear_classifier() -> None:
    torch.manual_seed(0)
    prototypes, known = 3 * torch.randn(6, 4), torch.tensor([True, True, False, True, True, True])
    embedding = 3 * torch.randn(500, 4)
    rows = {name: torch.from_numpy(value) for name, value in nearest(prototypes, known).items()}
    answer = (embedding @ rows["classify.weight"].T + rows["classify.bias"]).argmax(1)
    distance = torch.cdist(embedding, prototypes)
    distance[:, 2] = math.inf
    assert torch.equal(answer, distance.argmin(1))


@pytest.mark.parametrize("name", ["fedproto", "fedtgp"])
def test_the_back_ends_that_are_saved_answer_with_the_nearest_prototype(name: str, rival: Rival) -> None:
    method = rival(name)
    method.round(0)
    assert isinstance(method, NearestPrototype)
    for own in method.peek().back_ends.values():
        np.testing.assert_array_equal(own["classify.weight"], method.prototypes.numpy())


def test_fedproto_means_weigh_every_image_alike_and_a_class_without_images_keeps_its_prototype(rival: Rival) -> None:
    method = rival("fedproto")
    assert isinstance(method, FedProto)
    uploads = UPLOADS._replace(means=UPLOADS.means.repeat(1, method.width // 2))
    method.learn(uploads, none(method))
    expected = {0: [9.0, 0.0], 1: [1.5, 0.0], 2: [0.0, 5.0], 3: [0.0, 0.0]}
    for token, value in expected.items():
        assert method.prototypes[token, :2].tolist() == value
    assert method.known.tolist() == [True] * 3 + [False] * 7
    only = Uploads(torch.ones(1, method.width), torch.tensor([3]), torch.tensor([0]), torch.ones(1))
    method.learn(only, none(method))
    assert method.prototypes[3, 0] == 1
    assert method.prototypes[1, 0] == 1.5
    assert method.known.sum() == 4


def test_clients_upload_the_mean_embedding_of_each_of_their_classes(rival: Rival) -> None:
    """At a rate of nearly 0 the embeddings of a round are those of the weights that it began with."""
    method = rival("fedproto", learning_rate=1e-30, muon_rate=1e-30)
    assert isinstance(method, FedProto)
    seen: list[Uploads] = []
    method.learn = lambda uploads, losses: seen.append(uploads)  # type: ignore[method-assign]
    method.round(0)
    members = method.federation
    for client in range(4):
        parts = [members.batch([client], step) for step in range(members.config.steps)]
        with torch.no_grad():
            embedded = [
                method.back_ends[client].embed(method.front_ends[client](inputs).feature) for inputs, _ in parts
            ]
        embedding, tokens = torch.cat(embedded), torch.cat([one for _, one in parts])
        mine = seen[0].clients == client
        assert seen[0].tokens[mine].tolist() == sorted(set(tokens.tolist()))
        for token, mean, images in zip(seen[0].tokens[mine], seen[0].means[mine], seen[0].images[mine], strict=True):
            torch.testing.assert_close(mean, embedding[tokens == token].mean(0))
            assert images == (tokens == token).sum()


def test_the_pull_is_the_squared_distance_to_known_prototypes(rival: Rival) -> None:
    method = rival("fedproto", fedproto={"pull": 3.0})
    assert isinstance(method, FedProto)
    method.prototypes[4], method.known[4] = 2.0, True
    embedding = torch.zeros(2, method.width, requires_grad=True)
    term = method.embedding_terms(embedding, torch.tensor([4, 5]))["prototype"]
    assert term.item() == 3 * 4 / 2, "mean over both images, of which one has no prototype"
    term.backward()  # type: ignore[no-untyped-call]
    assert embedding.grad is not None
    assert bool((embedding.grad[0] < 0).all())
    assert not embedding.grad[1].any()


def test_fedtgp_contrast_is_the_papers() -> None:
    torch.manual_seed(0)
    prototypes, margin = torch.randn(3, 2), 1.5
    for at, loss in enumerate(margin_contrast(UPLOADS, prototypes, margin).tolist()):
        token = int(UPLOADS.tokens[at])
        distance = (UPLOADS.means[at] - prototypes).norm(dim=1).tolist()
        own = math.exp(-(distance[token] + margin))
        others = sum(math.exp(-one) for other, one in enumerate(distance) if other != token)
        assert loss == pytest.approx(-math.log(own / (own + others)), rel=1e-4)


def test_fedtgp_margin_is_the_largest_distance_to_the_nearest_centre() -> None:
    """Centres (9, 0), (1, 0) and (0, 5): their nearest others are 8, √26 and √26 away."""
    assert centre_gap(UPLOADS) == pytest.approx(8)
    assert centre_gap(Uploads(*(value[:2] for value in UPLOADS))) == 0


def test_fedtgp_trains_prototypes_towards_their_classes(rival: Rival) -> None:
    method = rival("fedtgp", fedtgp={"server_steps": 200, "server_rate": 0.01})
    assert isinstance(method, FedTGP)
    uploads = UPLOADS._replace(means=UPLOADS.means.repeat(1, method.width // 2))
    losses = none(method)
    method.learn(uploads, losses)
    assert torch.equal(torch.cdist(uploads.means, method.prototypes[:3]).argmin(1), uploads.tokens)
    assert losses.terms["contrast"][2] == 0, "which uploaded nothing"
    assert bool((losses.terms["contrast"][[0, 1, 3]] > 0).all())


def test_fedgh_trains_one_header_and_every_client_goes_on_from_it(rival: Rival) -> None:
    method = rival("fedgh", fedgh={"server_steps": 300, "server_rate": 0.1})
    assert isinstance(method, FedGH)
    uploads = UPLOADS._replace(means=UPLOADS.means.repeat(1, method.width // 2))
    first, second = none(method), none(method)
    method.learn(uploads, first)
    assert torch.equal(method.header(uploads.means).argmax(1), uploads.tokens)
    for back_end in method.back_ends:
        assert torch.equal(back_end.classify.weight, method.header.weight)
    method.learn(uploads, second)
    assert second.terms["header"].sum() < first.terms["header"].sum()


def none(method: LocalTraining) -> Losses:
    return Losses.zeros(method.terms, len(method.front_ends))


def test_by_client_is_a_mean_over_uploads() -> None:
    values: Tensor = torch.tensor([1.0, 2.0, 4.0, 5.0, 7.0])
    assert UPLOADS.by_client(values, 4).tolist() == [1, 3, 0, 6]
