"""FedProto (Tan, Long, Liu, Zhou, Lu, Jiang, Zhang, AAAI 2022, arXiv 2105.00243): clients share class prototypes.

A client's loss is its classifier's plus λ times the distance of its embeddings to the global prototypes of their
classes (eq. 7; the mean squared error, sample by sample, as in the authors' code). A prototype is the mean embedding of
a class (eq. 3), the global one the mean over all images of the clients that hold the class (eq. 6). The nearest global
prototype answers (section 4).

Split setting: the embedding is that of a back end of the client's own, so what the prototypes have to align is front
end and back end together; the exits are the client's own too.
"""

from __future__ import annotations

import torch

from harmony.train.federation import Federation
from harmony.train.method import Losses
from harmony.train.prototypes import NearestPrototype, Uploads


class FedProto(NearestPrototype):
    """Prototypes that are means of means."""

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.pull = federation.config.fedproto.pull

    def learn(self, uploads: Uploads, losses: Losses) -> None:
        """The mean of every class over this round's images; a class that nobody drew keeps its prototype."""
        images = uploads.images.new_zeros(self.classes).index_add(0, uploads.tokens, uploads.images)
        sums = torch.zeros_like(self.prototypes).index_add(0, uploads.tokens, uploads.means * uploads.images[:, None])
        drawn = images > 0
        self.prototypes = torch.where(drawn[:, None], sums / images.clamp(min=1)[:, None], self.prototypes)
        self.known = self.known | drawn
