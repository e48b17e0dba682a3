"""FedTGP (Zhang, Liu, Hua, Cao, AAAI 2024, arXiv 2401.03230): FedProto whose server trains the global prototypes.

Averaged prototypes of unlike clients lie close together. Here the server draws one vector a class through a small
network, P̂ = F(P; θ_F), and trains P and θ_F so that every uploaded class mean is nearer to its own class's prototype
than to the others', by a margin: cross-entropy over −(distance + margin at the own class) (adaptive-margin enhanced
contrastive learning, section 4). The margin is the largest distance of a class's centre to its nearest other centre,
as in the authors' code, and at most `margin`. Clients pull their embeddings towards P̂, and the nearest one answers.

Split setting: as in FedProto. The server takes `server_steps` steps of Adam on all uploads at once, where the authors
take 100 epochs of SGD in batches of 10.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from harmony.train.federation import Federation
from harmony.train.method import Losses, State, seeded
from harmony.train.prototypes import NearestPrototype, Uploads


class FedTGP(NearestPrototype):
    """Prototypes that are trained."""

    terms = (*NearestPrototype.terms, "contrast")

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.settings = federation.config.fedtgp
        self.pull = self.settings.pull
        with seeded(federation.config.seed):
            vectors = nn.Embedding(self.classes, self.width)
            self.generator = nn.Sequential(
                vectors, nn.Linear(self.width, self.width), nn.ReLU(), nn.Linear(self.width, self.width)
            ).to(federation.place)

    def learn(self, uploads: Uploads, losses: Losses) -> None:
        """Train the prototypes on this round's class means."""
        optimizer = torch.optim.Adam(self.generator.parameters(), lr=self.settings.server_rate)
        margin = min(centre_gap(uploads), self.settings.margin)
        for _ in range(self.settings.server_steps):
            optimizer.zero_grad(set_to_none=True)
            each = margin_contrast(uploads, self._generate(), margin)
            each.mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        clients = len(self.back_ends)
        losses.add("contrast", range(clients), uploads.by_client(each.detach(), clients))
        self.prototypes = self._generate().detach()
        self.known = self.known.index_fill(0, uploads.tokens, value=True)

    def _generate(self) -> Tensor:
        out: Tensor = self.generator(torch.arange(self.classes, device=self.federation.place))
        return out

    def state(self) -> State:
        """What FedProto keeps, and the generator."""
        return super().state() | {f"generator/{name}": value for name, value in self.generator.state_dict().items()}

    def restore(self, state: State) -> None:
        """Take over what `state` gave."""
        super().restore(state)
        self.generator.load_state_dict({name: state[f"generator/{name}"] for name in self.generator.state_dict()})


def margin_contrast(uploads: Uploads, prototypes: Tensor, margin: float) -> Tensor:
    """Loss of every upload, (m,)."""
    distance = torch.cdist(uploads.means, prototypes)
    own = F.one_hot(uploads.tokens, len(prototypes))
    return F.cross_entropy(-(distance + margin * own), uploads.tokens, reduction="none")


def centre_gap(uploads: Uploads) -> float:
    """The largest distance of a class's centre, the mean of its uploads, to the nearest other one; 0 for one class."""
    tokens = torch.unique(uploads.tokens)
    if len(tokens) == 1:
        return 0.0
    centres = torch.stack([uploads.means[uploads.tokens == token].mean(0) for token in tokens])
    distance = torch.cdist(centres, centres).fill_diagonal_(float("inf"))
    return float(distance.min(1).values.max())
