"""What most rivals have in common: every client trains a model of its own for a round, and then the clients meet.

A model is a front end with its exits and a back end. The loss of a batch is γ · CE(exits) + (1 − γ) · (the back end's
terms), as in SplitGP. A rival says what the clients do with each other's work when they meet, and may add terms.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from harmony.core.models import BackEnd, FrontEnd
from harmony.train.federation import Federation
from harmony.train.losses import masked_cross_entropy
from harmony.train.method import Losses, State, Trained, annealed, numpy_state, optimizer_of, seeded


class LocalTraining:
    """A front end and a back end for every client. Optimisers live for a round: the weights are the state.

    Adam, although the papers use SGD: it is what HARMONY has, and on held-out images it is as good or better for all.

    share_back_end: all back ends are equal between rounds, and so there is one for all to save and to serve.
    """

    gate = False
    share_back_end: ClassVar[bool]
    terms: ClassVar[tuple[str, ...]] = ("exit1", "exit2", "server")

    def __init__(self, federation: Federation) -> None:
        self.federation, config = federation, federation.config
        classes = federation.dataset.classes
        with seeded(config.seed):
            back_end = BackEnd(federation.feature, width=config.back_end_width, tokens=classes)
            # Clients of one architecture start from the same weights, as those of the papers do.
            start = {
                one: FrontEnd(one, federation.image, federation.feature, outputs=classes, gate=None)
                for one in federation.groups
            }
        for module in (back_end, *start.values()):
            # Where the images are and in their memory order, so that no convolution has to turn the weights first.
            module.to(federation.place, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.front_ends = [copy.deepcopy(start[client.architecture]) for client in federation.clients]
        self.back_ends = [copy.deepcopy(back_end) for _ in federation.clients]

    def round(self, index: int) -> Losses:
        """Local steps of every client, then the meeting."""
        sums, clients = Losses.zeros(self.terms, len(self.front_ends)), self.federation.participants(index)
        for client in clients:
            self._train(client, index, sums)
        losses = sums.mean(self.federation.config.steps)
        self.meet(clients, losses)
        return losses

    def meet(self, clients: Sequence[int], losses: Losses) -> None:
        """What happens between the clients of a round after it; a server that learns adds its losses to the round's."""
        raise NotImplementedError

    def back_end_terms(self, client: int, feature: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Terms of a batch's loss past the cut, by name; they are added up. feature: (n, C, H, W); tokens: (n,)."""
        return {"server": F.cross_entropy(self.back_ends[client](feature), tokens)}

    def _train(self, client: int, index: int, losses: Losses) -> None:
        config = self.federation.config
        parameters = [*self.front_ends[client].parameters(), *self.back_ends[client].parameters()]
        optimizer = optimizer_of(parameters, config)
        for step in range(index * config.steps, (index + 1) * config.steps):
            annealed((optimizer,), step, config.rounds * config.steps)
            optimizer.zero_grad(set_to_none=True)
            self._loss(client, step, losses).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def _loss(self, client: int, step: int, losses: Losses) -> Tensor:
        inputs, tokens = self.federation.batch([client], step)
        out = self.front_ends[client](inputs)
        own = self.federation.own[client].expand(len(tokens), -1)
        exits = {
            "exit1": masked_cross_entropy(out.logits1, tokens, own),
            "exit2": masked_cross_entropy(out.logits2, tokens, own),
        }
        back_end = self.back_end_terms(client, out.feature, tokens)
        for name, value in (exits | back_end).items():
            losses.add(name, [client], value[None])
        gamma = self.federation.config.gamma
        return gamma * (exits["exit1"] + exits["exit2"]) / 2 + (1 - gamma) * torch.stack([*back_end.values()]).sum()

    def finish(self) -> Trained:
        """The clients as they are: these methods personalise while they train, or not at all."""
        return self.peek()

    def peek(self) -> Trained:
        """Copies of all weights."""
        clients = dict(enumerate(map(numpy_state, self.front_ends)))
        if self.share_back_end:
            return Trained(numpy_state(self.back_ends[0]), clients)
        return Trained({}, clients, dict(enumerate(map(numpy_state, self.back_ends))))

    def state(self) -> State:
        """All weights."""
        modules = self._modules()
        return {f"{key}/{name}": value for key, one in modules.items() for name, value in one[0].state_dict().items()}

    def restore(self, state: State) -> None:
        """Take over what `state` gave."""
        for key, modules in self._modules().items():
            for one in modules:
                one.load_state_dict({name: state[f"{key}/{name}"] for name in one.state_dict()})

    def _modules(self) -> Mapping[str, Sequence[nn.Module]]:
        """By name in the state: the modules that are equal between rounds under that name."""
        clients: dict[str, Sequence[nn.Module]] = {
            f"client/{client}": [front_end] for client, front_end in enumerate(self.front_ends)
        }
        if self.share_back_end:
            return {"back_end": self.back_ends} | clients
        return {f"back_end/{client}": [back_end] for client, back_end in enumerate(self.back_ends)} | clients


@torch.no_grad()
def average(sources: Sequence[nn.Module], targets: Sequence[nn.Module], keep: float = 0.0) -> None:
    """Set every target to keep · itself + (1 − keep) · mean of the sources. All are of one architecture."""
    means = [torch.stack(values).mean(0) for values in zip(*(one.parameters() for one in sources), strict=True)]
    for target in targets:
        for value, mean in zip(target.parameters(), means, strict=True):
            value.mul_(keep).add_(mean, alpha=1 - keep)
