"""LG-FedAvg (Liang, Liu, Ziyin, Salakhutdinov, Morency, 2020, arXiv 2001.01523): local representations, a global rest.

Clients keep their representation to themselves; what follows it is averaged over all clients after every round (the
paper's algorithm 1). Here the representation is the front end with its exits, of any architecture, since the cut is
what the paper asks for: a representation of one shape. The rest is the back end θ.
"""

from __future__ import annotations

from collections.abc import Sequence

from harmony.train.local_training import LocalTraining, average
from harmony.train.method import Losses


class LGFedAvg(LocalTraining):
    """A front end for every client, and one θ."""

    share_back_end = True

    def meet(self, clients: Sequence[int], losses: Losses) -> None:
        """The average of θ."""
        average([self.back_ends[client] for client in clients], self.back_ends)
