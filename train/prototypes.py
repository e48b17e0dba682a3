"""Class means of embeddings, which clients of any architecture can share: the stuff of FedProto, FedTGP and FedGH."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from numpy.typing import NDArray
from torch import Tensor

from harmony.train.federation import Federation
from harmony.train.local_training import LocalTraining
from harmony.train.method import Losses, State, Trained

_NEVER = -1e30
"""Bias of a class that nobody has described yet: finite, and below every other."""


class Uploads(NamedTuple):
    """What the server gets after a round: m class means (m, d), their tokens (m,), their clients (m,), images (m,)."""

    means: Tensor
    tokens: Tensor
    clients: Tensor
    images: Tensor

    def by_client(self, values: Tensor, clients: int) -> Tensor:
        """Mean of (m,) values over each client's uploads: (clients,)."""
        none = values.new_zeros(clients)
        uploads = none.index_add(0, self.clients, torch.ones_like(values))
        return none.index_add(0, self.clients, values) / uploads.clamp(min=1)


class ClassMeans(LocalTraining):
    """Front end and back end of a client's own. After a round it uploads the mean embedding of each of its classes.

    The means are over the batches that the client trained on in the round, so they cost no pass of their own.
    """

    share_back_end = False

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.classes, self.width = federation.dataset.classes, 2 * federation.config.back_end_width
        self._forget()

    def _forget(self) -> None:
        clients, place = len(self.back_ends), self.federation.place
        self._sums = torch.zeros(clients, self.classes, self.width, device=place)
        self._images = torch.zeros(clients, self.classes, device=place)

    def back_end_terms(self, client: int, feature: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the client's own classifier, and what the method asks of the embedding."""
        embedding = self.back_ends[client].embed(feature)
        self._sums[client].index_add_(0, tokens, embedding.detach())
        self._images[client].index_add_(0, tokens, self._images.new_ones(len(tokens)))
        server = F.cross_entropy(self.back_ends[client].classify(embedding), tokens)
        return {"server": server} | self.embedding_terms(embedding, tokens)

    def embedding_terms(self, embedding: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Further terms of a batch's loss: embedding (n, d), tokens (n,)."""
        return {}

    def meet(self, clients: Sequence[int], losses: Losses) -> None:
        """Hand the round's means to the server."""
        owners, tokens = self._images.nonzero(as_tuple=True)
        images = self._images[owners, tokens]
        self.learn(Uploads(self._sums[owners, tokens] / images[:, None], tokens, owners, images), losses)
        self._forget()

    def learn(self, uploads: Uploads, losses: Losses) -> None:
        """The server's part."""
        raise NotImplementedError


class NearestPrototype(ClassMeans):
    """Global prototypes, one a class: clients pull their embeddings towards them, and the nearest one answers.

    prototypes: (classes, d), by token; known: (classes,) bool, whether any client has described the class.
    """

    terms = (*ClassMeans.terms, "prototype")
    pull: float

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.prototypes = torch.zeros(self.classes, self.width, device=federation.place)
        self.known = torch.zeros(self.classes, dtype=torch.bool, device=federation.place)

    def embedding_terms(self, embedding: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """pull · MSE(embedding, prototype of its class); 0 for a class without one."""
        target = torch.where(self.known[tokens, None], self.prototypes[tokens], embedding.detach())
        return {"prototype": self.pull * F.mse_loss(embedding, target)}

    def peek(self) -> Trained:
        """All weights; the back ends' classifiers are the nearest global prototype."""
        trained = super().peek()
        rows = nearest(self.prototypes, self.known)
        return Trained({}, trained.clients, {client: own | rows for client, own in trained.back_ends.items()})

    def state(self) -> State:
        """All weights and the prototypes."""
        return super().state() | {"prototypes": self.prototypes, "known": self.known.float()}

    def restore(self, state: State) -> None:
        """Take over what `state` gave."""
        super().restore(state)
        place = self.federation.place
        self.prototypes, self.known = state["prototypes"].to(place, copy=True), state["known"].bool().to(place)


def nearest(prototypes: Tensor, known: Tensor) -> dict[str, NDArray[np.float32]]:
    """The classifier of a back end whose largest logit is that of the nearest prototype.

    −½‖e − p‖² = e·p − ½‖p‖² − ½‖e‖², and the last part is the same for all classes.
    """
    bias = torch.where(known, -prototypes.square().sum(1) / 2, prototypes.new_tensor(_NEVER))
    return {"classify.weight": prototypes.cpu().numpy().copy(), "classify.bias": bias.cpu().numpy()}
