"""SplitGP (Han, Kim, Choi, Brinton, Moon, INFOCOM 2023, arXiv 2212.08343) among clients of several architectures.

Clients train front end and exit on γ · CE(exit) + (1 − γ) · CE(server's output); the cloud averages its copies of θ
after every round, and a client keeps a share λ of its own weights and takes 1 − λ of the mean. Weights of different
architectures cannot be averaged, so the mean is over the clients of one architecture.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from harmony.core.models import BackEnd, FrontEnd
from harmony.train.federation import Federation
from harmony.train.losses import masked_cross_entropy
from harmony.train.method import Losses, State, Trained, annealed, numpy_state, seeded

MOMENTUM = 0.9


class SplitGP:
    """Every client's front end, and one back end; no gate. Optimisers live for a round: the weights are the state."""

    gate = False

    def __init__(self, federation: Federation) -> None:
        self.federation, config = federation, federation.config
        classes = federation.dataset.classes
        with seeded(config.seed):
            self.back_end = BackEnd(federation.feature, width=config.back_end_width, tokens=classes)
            # Clients of one architecture start from the same weights, as the paper's do.
            start = {
                architecture: FrontEnd(architecture, federation.image, federation.feature, outputs=classes, gate=None)
                for architecture in federation.groups
            }
        self.front_ends = [copy.deepcopy(start[client.architecture]) for client in federation.clients]

    def round(self, index: int) -> Losses:
        """Local steps of every client with a copy of θ, then the averages."""
        losses = Losses.zeros(("exit1", "exit2", "server"), len(self.front_ends))
        copies = [self._local(client, index, losses) for client in range(len(self.front_ends))]
        _average_into([self.back_end], copies, keep=0.0)
        for ids in self.federation.groups.values():
            group = [self.front_ends[client] for client in ids]
            _average_into(group, group, keep=self.federation.config.splitgp.mixing)
        return losses.mean(self.federation.config.steps)

    def _local(self, client: int, index: int, losses: Losses) -> BackEnd:
        config, front_end, back_end = self.federation.config, self.front_ends[client], copy.deepcopy(self.back_end)
        parameters = [*front_end.parameters(), *back_end.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=config.learning_rate, momentum=MOMENTUM)
        for step in range(index * config.steps, (index + 1) * config.steps):
            annealed((optimizer,), config, step)
            optimizer.zero_grad(set_to_none=True)
            self._loss(client, front_end, back_end, step, losses).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return back_end

    def _loss(self, client: int, front_end: FrontEnd, back_end: BackEnd, step: int, losses: Losses) -> Tensor:
        inputs, tokens = self.federation.batch([client], step)
        out = front_end(inputs)
        own = self.federation.own[client].expand(len(tokens), -1)
        terms = {
            "exit1": masked_cross_entropy(out.logits1, tokens, own),
            "exit2": masked_cross_entropy(out.logits2, tokens, own),
            "server": F.cross_entropy(back_end(out.feature), tokens),
        }
        for name, value in terms.items():
            losses.add(name, [client], value[None])
        gamma = self.federation.config.gamma
        return gamma * (terms["exit1"] + terms["exit2"]) / 2 + (1 - gamma) * terms["server"]

    def finish(self) -> Trained:
        """The clients as they are: SplitGP personalises while it trains."""
        return self.peek()

    def peek(self) -> Trained:
        """Copies of all weights."""
        clients = {client: numpy_state(front_end) for client, front_end in enumerate(self.front_ends)}
        return Trained(numpy_state(self.back_end), clients)

    def state(self) -> State:
        """All weights."""
        return {name: value for key, module in self._modules() for name, value in _named(key, module)}

    def restore(self, state: State) -> None:
        """Take over what `state` gave."""
        for key, module in self._modules():
            module.load_state_dict({name: state[f"{key}/{name}"] for name in module.state_dict()})

    def _modules(self) -> list[tuple[str, nn.Module]]:
        clients = [(f"client/{index}", front_end) for index, front_end in enumerate(self.front_ends)]
        return [("back_end", self.back_end), *clients]


def _named(key: str, module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(f"{key}/{name}", value) for name, value in module.state_dict().items()]


@torch.no_grad()
def _average_into(
    targets: list[FrontEnd] | list[BackEnd], sources: list[FrontEnd] | list[BackEnd], keep: float
) -> None:
    """Set every target to keep · itself + (1 − keep) · mean of the sources."""
    means = [torch.stack(values).mean(0) for values in zip(*(one.parameters() for one in sources), strict=True)]
    for target in targets:
        for value, mean in zip(target.parameters(), means, strict=True):
            value.mul_(keep).add_(mean, alpha=1 - keep)
