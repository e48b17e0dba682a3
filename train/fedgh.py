"""FedGH (Yi, Wang, Liu, Shi, Yu, ACM MM 2023, arXiv 2303.13137): a global header, trained on clients' class means.

After a round every client uploads the mean representation of each of its classes; the server trains one header on
them with cross-entropy, and every client goes on from that header (algorithm 1). Representations are never shared, so
clients of any architecture can take part.

Split setting: the header is the linear classifier of the back end, and the rest of the back end is the client's own.
The server takes `server_steps` steps of SGD a round on all means at once.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name

from harmony.train.federation import Federation
from harmony.train.method import Losses, State
from harmony.train.prototypes import ClassMeans, Uploads


class FedGH(ClassMeans):
    """A header for all, over embeddings of a client's own."""

    terms = (*ClassMeans.terms, "header")

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.header = copy.deepcopy(self.back_ends[0].classify)

    def learn(self, uploads: Uploads, losses: Losses) -> None:
        """Train the header on this round's class means, and hand it to every client."""
        settings, clients = self.federation.config.fedgh, len(self.back_ends)
        optimizer = torch.optim.SGD(self.header.parameters(), lr=settings.server_rate)
        for _ in range(settings.server_steps):
            optimizer.zero_grad(set_to_none=True)
            each = F.cross_entropy(self.header(uploads.means), uploads.tokens, reduction="none")
            each.mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        losses.add("header", range(clients), uploads.by_client(each.detach(), clients))
        self._hand_out()

    def _hand_out(self) -> None:
        for back_end in self.back_ends:
            back_end.classify.load_state_dict(self.header.state_dict())

    def restore(self, state: State) -> None:
        """Take over what `state` gave."""
        super().restore(state)
        self.header.load_state_dict(self.back_ends[0].classify.state_dict())
