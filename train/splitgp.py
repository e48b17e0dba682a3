"""SplitGP (Han, Kim, Choi, Brinton, Moon, INFOCOM 2023, arXiv 2212.08343) among clients of several architectures.

Clients train front end and exit on γ · CE(exit) + (1 − γ) · CE(server's output); the cloud averages its copies of θ
after every round, and a client keeps a share λ of its own weights and takes 1 − λ of the mean. Weights of different
architectures cannot be averaged, so the mean is over the clients of one architecture; with one architecture for all
clients this is the paper's SplitGP.
"""

from __future__ import annotations

from collections.abc import Sequence

from harmony.train.local_training import LocalTraining, average
from harmony.train.method import Losses


class SplitGP(LocalTraining):
    """Averaging within an architecture, and one θ."""

    share_back_end = True

    def meet(self, clients: Sequence[int], losses: Losses) -> None:
        """Both averages."""
        average([self.back_ends[client] for client in clients], self.back_ends)
        for ids in self.federation.groups.values():
            if group := [self.front_ends[client] for client in ids if client in clients]:
                average(group, group, keep=self.federation.config.splitgp.mixing)
