"""HeteroFL (Diao, Ding, Tarokh, ICLR 2021, arXiv 2010.02264): clients train slices of one large network.

A narrow or shallow front end is the leading slice of every weight of a wide and deep one. After a round each element of
the large network becomes its mean over the clients whose slice holds it (eq. 2-4), and clients go on from their slices.
With few classes a client, logits of classes that it lacks are masked out of its loss (section 3), and here the rows of
those classes are not among the elements that it holds.

Split setting: one large network a family, since unlike families have no weight in common, exits included; one back end
θ for all, averaged likewise, masked too unless `masked` is off. GroupNorm with groups of fixed size stands for the
paper's static batch norm and scaler: it sees every group alike, whatever the width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from harmony.core.models import FrontEnd
from harmony.train.federation import Federation
from harmony.train.local_training import LocalTraining
from harmony.train.losses import masked_cross_entropy
from harmony.train.method import Losses, State, seeded
from harmony.train.supernet import largest

HEADS = ("head.weight", "head.bias", "classify.weight", "classify.bias")


class HeteroFL(LocalTraining):
    """One large front end a family, and one θ; the clients' networks are slices and copies of them."""

    share_back_end = True

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        classes = federation.dataset.classes
        with seeded(federation.config.seed):
            self.large = {
                family: FrontEnd(one, federation.image, federation.feature, outputs=classes, gate=None)
                for family, one in largest(federation.groups).items()
            }
        for one in self.large.values():
            one.to(federation.place)
        self.theta = copy.deepcopy(self.back_ends[0])
        self.rows = federation.own if federation.config.heterofl.masked else torch.ones_like(federation.own)
        self._hand_out()

    def back_end_terms(self, client: int, feature: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Cross-entropy over the classes that the client has a word on."""
        rows = self.rows[client].expand(len(tokens), -1)
        return {"server": masked_cross_entropy(self.back_ends[client](feature), tokens, rows)}

    def meet(self, clients: Sequence[int], losses: Losses) -> None:
        """The mean of every element, then the slices."""
        for family, large in self.large.items():
            ids = [client for client in self._members(family) if client in clients]
            average_elements(large, [self.front_ends[client] for client in ids], self.federation.own[ids])
        trained = [self.back_ends[client] for client in clients]
        average_elements(self.theta, trained, self.rows[clients])
        self._hand_out()

    def _members(self, family: str) -> list[int]:
        return [client.index for client in self.federation.clients if client.architecture.family == family]

    @torch.no_grad()
    def _hand_out(self) -> None:
        for family, large in self.large.items():
            whole = dict(large.named_parameters())
            for client in self._members(family):
                for name, value in self.front_ends[client].named_parameters():
                    value.copy_(whole[name][_slot(value)])
        for back_end in self.back_ends:
            back_end.load_state_dict(self.theta.state_dict())

    def restore(self, state: State) -> None:
        """Take over what `state` gave."""
        super().restore(state)
        self._hand_out()

    def _modules(self) -> Mapping[str, Sequence[nn.Module]]:
        return {"back_end": [self.theta]} | {f"large/{family}": [one] for family, one in self.large.items()}


@torch.no_grad()
def average_elements(large: nn.Module, slices: Sequence[nn.Module], rows: Tensor) -> None:
    """Set every element of `large` to its mean over the slices that hold it; one that none holds stays.

    slices: modules whose weights are leading slices of those in `large`; rows: (slices, classes) bool, which rows of
    the heads a slice holds.
    """
    held = [dict(one.named_parameters()) for one in slices]
    for name, value in large.named_parameters():
        sums, count = torch.zeros_like(value), torch.zeros_like(value)
        for one, own in zip(held, rows, strict=True):
            if name in one:
                part = own.view(-1, *[1] * (value.dim() - 1)).float() if name.endswith(HEADS) else value.new_ones(())
                sums[_slot(one[name])] += part * one[name]
                count[_slot(one[name])] += part
        value.copy_(torch.where(count > 0, sums / count.clamp(min=1), value))


def _slot(value: Tensor) -> tuple[slice, ...]:
    return tuple(slice(0, side) for side in value.shape)
