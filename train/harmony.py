"""HARMONY (Youn et al., arXiv 2605.07211), reconstructed from its abstract; see docs/algorithm.md.

One step, as it happens between the devices, the aggregator of their extractors, and the cloud:

    1. every client takes an architecture of the federation, in turn its own and the others' (simulated extractors,
       across architectures), and may first adapt it to its own classes (simulated extractors, across parameters);
    2. it runs a batch through that slice of the family's super-network and sends features and class tokens;
    3. the cloud learns θ from all features, pulls together the features that different architectures make of a class
       (contrast), and returns the gradient at the cut;
    4. clients add the loss of their exits' all-class gates and send the extractors' gradients to the aggregator.

In the end every client makes its front end its own, by a few steps on its own images that leave it readable for θ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor

from harmony.core.models import BackEnd, FrontEnd
from harmony.core.spec import Architecture
from harmony.train.cloud_side import Cloud
from harmony.train.federation import ROTATION, SUPPORT, Federation, stream
from harmony.train.inner import adapted, gate
from harmony.train.messages import ExtractorGradients, Post, Upload, Weights, hand_over
from harmony.train.method import (
    Losses,
    Trained,
    annealed,
    numpy_state,
    optimizer_of,
    optimizer_tensors,
    restore_optimizer,
    seeded,
)
from harmony.train.personalize import gate_heads, personal
from harmony.train.supernet import Parameters, Trunk, Views, largest, look, skeleton


class Visit(NamedTuple):
    """Clients that run one architecture at a step, their own or a simulated one; adapt: each to its own classes."""

    architecture: Architecture
    clients: list[int]
    adapt: bool = False


class Harmony:
    """Shared super-networks with gate heads, and the back end θ. `round` and `finish` are all that a run calls."""

    gate = True

    def __init__(self, federation: Federation) -> None:
        self.federation, config = federation, federation.config
        classes = federation.dataset.classes
        with seeded(config.seed):
            self.back_end = BackEnd(federation.feature, width=config.back_end_width, tokens=classes)
            self.back_end.to(federation.place)
            self.shared = _super_networks(federation)
        theirs = optimizer_of(self.back_end.parameters(), config)
        self.cloud = Cloud(self.back_end, config.harmony, share=1 - config.gamma, optimizer=theirs)
        self.aggregator = optimizer_of(self.shared.values(), config)
        self.post: Post = hand_over

    def round(self, index: int) -> Losses:
        """One round of `steps` steps; mean losses by client."""
        steps, clients = self.federation.config.steps, self.federation.participants(index)
        losses = Losses.zeros(("gate1", "gate2", "server", "contrast"), len(self.federation.clients))
        for step in range(index * steps, (index + 1) * steps):
            self._step(step, clients, losses)
        return losses.mean(steps)

    def _step(self, step: int, clients: list[int], losses: Losses) -> None:
        config = self.federation.config
        annealed((self.cloud.optimizer, self.aggregator), step, config.rounds * config.steps)
        visits = list(self.visits(step, clients))
        forward = [self._forward(number, visit, step, losses) for number, visit in enumerate(visits)]
        learnt = self.cloud.learn([upload for upload, _, _ in forward])
        ids = [client for visit in visits for client in visit.clients]
        losses.add("server", ids, learnt.each.view(len(ids), -1).mean(1))
        losses.add("contrast", ids, learnt.contrast.expand(len(ids)))
        self.aggregator.zero_grad(set_to_none=True)
        share = torch.tensor(config.gamma / 2 / len(clients), device=self.federation.place)
        for (_, feature, own_loss), gradient in zip(forward, learnt.gradients, strict=True):
            torch.autograd.backward([feature, own_loss], [self.post(gradient).feature, share])
        sums = {name: value.grad for name, value in self.shared.items() if value.grad is not None}
        self.post(ExtractorGradients(sums))
        self.aggregator.step()

    def visits(self, step: int, clients: list[int]) -> Iterator[Visit]:
        """Who runs what at a step. All clients move on by the same number of architectures, so batches stay even."""
        settings, architectures = self.federation.config.harmony, list(self.federation.groups)
        random = stream(self.federation.config.seed, ROTATION, step)
        shift = int(random.integers(len(architectures))) if settings.simulate else 0
        adapt = random.random(len(architectures)) < (settings.inner_share if settings.inner_steps else 0)
        for place, ids in enumerate(self.federation.groups.values()):
            if here := [client for client in ids if client in clients]:
                at = (place + shift) % len(architectures)
                yield Visit(architectures[at], here, bool(adapt[at]))

    def _forward(self, number: int, visit: Visit, step: int, losses: Losses) -> tuple[Upload, Tensor, Tensor]:
        """Clients' side of steps 1, 2 and 4: (what leaves the devices, the feature in their graph, their own loss)."""
        inputs, tokens = self.federation.batch(visit.clients, step)
        trunk, slice_ = self.slice_of(visit.architecture)
        weights = self.post(Weights(visit.architecture, slice_)).tensors
        if visit.adapt:
            parts = zip(visit.clients, torch.split(inputs, self.federation.config.batch), strict=True)
            views = _joined([look(trunk, self._adapted(trunk, weights, one, step), part) for one, part in parts])
        else:
            views = look(trunk, weights, inputs)
        gates = [gate(weights, "exit1", views.embed1), gate(weights, "exit2", views.embed2)]
        each = [F.cross_entropy(one, tokens, reduction="none").view(len(visit.clients), -1).mean(1) for one in gates]
        losses.add("gate1", visit.clients, each[0])
        losses.add("gate2", visit.clients, each[1])
        told = self.federation.told_tokens(visit.clients, step)
        upload = self.post(Upload(views.feature.detach(), told, number))
        return upload, views.feature, (each[0] + each[1]).sum()

    def _adapted(self, trunk: Trunk, weights: Parameters, client: int, step: int) -> Parameters:
        """The front end that the client would have after personalisation on another batch of its own."""
        settings, (inputs, tokens) = self.federation.config.harmony, self.federation.batch([client], step, SUPPORT)
        own = self.federation.own[client].expand(len(tokens), -1)
        steps, rate = settings.inner_steps, settings.inner_rate
        return adapted(trunk, weights, inputs, tokens, own, steps=steps, rate=rate)

    def peek(self) -> Trained:
        """Every client's front end, cut out of the super-networks; the gate's rows are its heads."""
        return self._trained(lambda index, front_end: gate_heads(front_end))

    def finish(self) -> Trained:
        """The same, each made its client's own."""
        return self._trained(lambda index, front_end: personal(self.federation, index, front_end))

    def _trained(self, give: Callable[[int, FrontEnd], None]) -> Trained:
        clients = {}
        for client in self.federation.clients:
            front_end = self._front_end(client.architecture)
            give(client.index, front_end)
            clients[client.index] = numpy_state(front_end)
        return Trained(numpy_state(self.back_end), clients)

    def _front_end(self, architecture: Architecture) -> FrontEnd:
        federation, classes = self.federation, self.federation.dataset.classes
        front_end = FrontEnd(architecture, federation.image, federation.feature, outputs=classes, gate=classes)
        front_end.to(federation.place)
        _, weights = self.slice_of(architecture)
        front_end.load_state_dict({name: value.detach() for name, value in weights.items()}, strict=False)
        return front_end

    def slice_of(self, architecture: Architecture) -> tuple[Trunk, Parameters]:
        """The architecture without weights, and its slice of the family's super-network.

        The exit at the cut is the same for all families: features are alike there.
        """
        federation, family = self.federation, architecture.family
        trunk = skeleton(architecture, federation.image, federation.feature, federation.dataset.classes)
        names = ((name, name.removeprefix(f"{family}/")) for name in self.shared)
        return trunk, trunk.slices({bare: self.shared[name] for name, bare in names if "/" not in bare})

    def state(self) -> dict[str, Tensor]:
        """Everything that training depends on, by name."""
        back_end = {f"back_end/{name}": value for name, value in self.back_end.state_dict().items()}
        shared = {f"shared/{name}": value.detach() for name, value in self.shared.items()}
        optimizers = optimizer_tensors("cloud", self.cloud.optimizer) | optimizer_tensors("aggregator", self.aggregator)
        return back_end | shared | optimizers

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.back_end.load_state_dict({name: state[f"back_end/{name}"] for name in self.back_end.state_dict()})
        with torch.no_grad():
            for name, value in self.shared.items():
                value.copy_(state[f"shared/{name}"])
        restore_optimizer("cloud", self.cloud.optimizer, state)
        restore_optimizer("aggregator", self.aggregator, state)


def _super_networks(federation: Federation) -> Parameters:
    """One super-network a family (`family/name`), and the exit at the cut once for all (`exit2.name`)."""
    shared: Parameters = {}
    classes = federation.dataset.classes
    for family, architecture in largest(federation.groups).items():
        network = FrontEnd(architecture, federation.image, federation.feature, outputs=classes, gate=classes)
        for name, value in network.named_parameters():
            if ".head." not in name:
                key = name if name.startswith("exit2.") else f"{family}/{name}"
                shared.setdefault(key, value.detach().to(federation.place, copy=True).requires_grad_())
    return shared


def _joined(parts: list[Views]) -> Views:
    return Views(*(torch.cat(column) for column in zip(*parts, strict=True)))
