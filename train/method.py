"""What every method is to a run: rounds over a state that can be saved, and trained models in the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harmony.core.config import TrainConfig
from harmony.train.muon import Muon

State = dict[str, Tensor]


@dataclass
class Losses:
    """Losses of a round: by term, one value a client (0 where a client or term took no part).

    culprit: (term, client) of the first value of the round that was not finite; what comes after it is its consequence.
    """

    terms: dict[str, Tensor]
    culprit: tuple[str, int] | None = None

    @classmethod
    def zeros(cls, names: Sequence[str], clients: int) -> Losses:
        """All terms at 0."""
        return cls({name: torch.zeros(clients) for name in names})

    def add(self, name: str, clients: Sequence[int], values: Tensor) -> None:
        """Add one step's values, (clients,)."""
        values = values.detach().cpu()
        self.terms[name][list(clients)] += values
        if self.culprit is None and not bool(values.isfinite().all()):
            self.culprit = name, clients[int((~values.isfinite()).nonzero()[0, 0])]

    def mean(self, steps: int) -> Losses:
        """Mean over the steps of a round."""
        return Losses({name: value / steps for name, value in self.terms.items()}, self.culprit)


@dataclass(frozen=True)
class Trained:
    """The outcome: state dicts of core.models.

    back_end: rows of its classifier by token, empty where every client has its own; clients: by index, rows of heads
    and gates by token too (the checkpoint puts those by label); back_ends: a client's own back end, where the method
    shares none: it answers in place of `back_end` for that client.
    """

    back_end: dict[str, NDArray[Any]]
    clients: dict[int, dict[str, NDArray[Any]]]
    back_ends: Mapping[int, dict[str, NDArray[Any]]] = field(default_factory=dict)


class Method(Protocol):
    """HARMONY or a rival. Its whole state lies in `state()`; equal states and rounds give equal bits."""

    gate: bool

    def round(self, index: int) -> Losses:
        """Train one round; losses by client."""
        ...

    def peek(self) -> Trained:
        """The models as they stand between two rounds, before `finish` personalises them. Changes nothing."""
        ...

    def finish(self) -> Trained:
        """The trained models, personalised."""
        ...

    def state(self) -> State:
        """Everything that later rounds depend on."""
        ...

    def restore(self, state: State) -> None:
        """Take over a saved state."""
        ...


def annealed(optimizers: Sequence[torch.optim.Optimizer], step: int, steps: int) -> None:
    """Set the learning rates of a step: half a cosine from each group's first to 0 (Loshchilov & Hutter 2017)."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = cosine(group["rate"], step, steps)


def cosine(rate: float, step: int, steps: int) -> float:
    """The learning rate at a step: from `rate` to 0 along half a cosine."""
    return rate * 0.5 * (1 + math.cos(math.pi * step / steps))


def optimizer_of(parameters: Iterable[Tensor], config: TrainConfig, rate: float | None = None) -> torch.optim.Optimizer:
    """The optimizer that the config names, for some parameters, to be `annealed`.

    rate: the first learning rate of Adam, instead of the config's; Muon's is changed in proportion.
    """
    first = config.learning_rate if rate is None else rate
    if config.optimizer == "muon":
        return Muon(parameters, rate=first, matrix_rate=config.muon_rate * first / config.learning_rate)
    return torch.optim.Adam([{"params": list(parameters), "rate": first}], lr=first, foreach=True)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from the run's seed, and leave torch's global stream as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def numpy_state(module: nn.Module) -> dict[str, NDArray[Any]]:
    """A module's parameters as arrays of their own."""
    return {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> State:
    """An optimizer's running averages, as `optimizer/NAME/parameter/key`."""
    moments: Mapping[int, Mapping[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"optimizer/{name}/{at}/{key}": value for at, kept in moments.items() for key, value in kept.items()}


def restore_optimizer(name: str, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Take over what `optimizer_tensors` gave."""
    moments: dict[int, dict[str, Tensor]] = {}
    for path, value in state.items():
        if path.startswith(f"optimizer/{name}/"):
            at, key = path.split("/")[2:]
            moments.setdefault(int(at), {})[key] = value.clone()
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
