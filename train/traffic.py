"""What training costs a client's link: bytes that one participant sends and gets in a round, by arithmetic.

Numbers are float32, a token is four bytes. What all methods need alike, the first weights and the last, is left out.

| method | sent | got |
|---|---|---|
| harmony, every step | feature and tokens of a batch; gradients of a slice | a slice; gradient of the feature |
| splitgp, every step | feature and tokens of a batch | gradient of the feature |
| splitgp, every round | front end | front end |
| lg_fedavg, every round | back end | back end |
| heterofl, every round | front end and back end | front end and back end |
| fedproto, fedtgp, every round | a vector for each own class | a vector for each class |
| fedgh, every round | a vector for each own class | the back end's classifier |
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from statistics import fmean
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from harmony.core.models import BackEnd
from harmony.core.spec import Architecture, Frozen
from harmony.train.federation import Federation
from harmony.train.supernet import skeleton

_BYTES = 4
Bytes = Annotated[float, Field(ge=0)]


class Traffic(Frozen):
    """Bytes that a participant sends and gets in a round, mean over the clients."""

    sent: Bytes
    got: Bytes


def traffic(members: Federation) -> Traffic:
    """What the method of a federation's config asks of its clients' links."""
    with torch.device("meta"):  # shapes are enough
        back_end = BackEnd(members.feature, width=members.config.back_end_width, tokens=members.dataset.classes)
    each = [_of_client(members, back_end, client) for client in range(len(members.clients))]
    return Traffic(sent=fmean(sent for sent, _ in each), got=fmean(got for _, got in each))


def _of_client(members: Federation, back_end: BackEnd, client: int) -> tuple[float, float]:
    config, classes, own = members.config, members.dataset.classes, len(members.clients[client].classes.own)
    batch = config.batch * _BYTES
    feature, vector = batch * prod(members.feature.shape), back_end.classify.in_features * _BYTES
    front_end = _front_end(members, members.clients[client].architecture, heads=True)
    match config.method:
        case "harmony":
            weights = fmean(_front_end(members, one, heads=False) for one in _run_by(members, client))
            return config.steps * (weights + feature + batch), config.steps * (weights + feature)
        case "splitgp":
            return config.steps * (feature + batch) + front_end, config.steps * feature + front_end
        case "lg_fedavg" | "heterofl":
            return (_size(back_end.parameters()) + (front_end if config.method == "heterofl" else 0),) * 2
        case "fedproto" | "fedtgp" | "fedgh":
            header = _size(back_end.classify.parameters())
            return own * vector, header if config.method == "fedgh" else classes * vector
        case "local":
            return 0, 0


def _run_by(members: Federation, client: int) -> list[Architecture]:
    """The architectures that a client of HARMONY runs in turn, all equally often."""
    simulate = members.config.harmony.simulate
    return list(members.groups) if simulate else [members.clients[client].architecture]


def _front_end(members: Federation, architecture: Architecture, *, heads: bool) -> int:
    """heads: with the personal heads, which HARMONY never sends, and without the gates, which rivals do not have."""
    trunk = skeleton(architecture, members.image, members.feature, members.dataset.classes)
    left_out = ".gate." if heads else ".head."
    return _size(value for name, value in trunk.named_parameters() if left_out not in name)


def _size(parameters: Iterable[Tensor]) -> int:
    return sum(value.numel() for value in parameters) * _BYTES
