"""Personal heads: a client's own few classes, learnt on its own images, over an extractor that stays as it is."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from harmony.core.models import ExitHead, FrontEnd
from harmony.train.federation import HEADS, Federation, stream
from harmony.train.losses import masked_cross_entropy

BATCH = 64


def gate_heads(front_end: FrontEnd) -> None:
    """Let both heads begin as the gate's rows, in place."""
    for exit_ in (front_end.exit1, front_end.exit2):
        exit_.head.load_state_dict(_gate_rows(exit_).state_dict())


def personal_heads(federation: Federation, index: int, front_end: FrontEnd) -> None:
    """Train both personal heads of client `index` in place, from the gate's rows.

    A head is kept only if it errs less than the gate's own-class rows on the client's held-out images; else those stay.
    """
    client = federation.clients[index]
    kept = [_embed(federation, front_end, images) for images in (client.train, client.holdout)]
    tokens = [
        torch.from_numpy(federation.tokens[federation.dataset.y_train[at]]) for at in (client.train, client.holdout)
    ]
    for place, exit_ in enumerate((front_end.exit1, front_end.exit2)):
        start = _gate_rows(exit_)
        head = _train(federation, index, start, kept[0][place], tokens[0])
        best = min((start, head), key=lambda one: _loss(one, kept[1][place], tokens[1], federation.own[index]))
        exit_.head.load_state_dict(best.state_dict())


def _gate_rows(exit_: ExitHead) -> nn.Linear:
    if exit_.gate is None:
        raise ValueError("a front end without gates has no rows to start from")
    head = copy.deepcopy(exit_.head)
    head.load_state_dict(exit_.gate.state_dict())
    return head


def _train(federation: Federation, index: int, start: nn.Linear, embedding: Tensor, tokens: Tensor) -> nn.Linear:
    config, head = federation.config, copy.deepcopy(start)
    optimizer = torch.optim.Adam(head.parameters(), lr=config.learning_rate)
    for epoch in range(config.harmony.personalize_epochs):
        order = torch.from_numpy(stream(config.seed, HEADS, index, epoch).permutation(len(tokens)))
        for at in torch.split(order, BATCH):
            optimizer.zero_grad(set_to_none=True)
            own = federation.own[index].expand(len(at), -1)
            masked_cross_entropy(head(embedding[at]), tokens[at], own).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return head


@torch.no_grad()
def _loss(head: nn.Linear, embedding: Tensor, tokens: Tensor, own: Tensor) -> float:
    return float(masked_cross_entropy(head(embedding), tokens, own.expand(len(tokens), -1)))


@torch.no_grad()
def _embed(federation: Federation, front_end: FrontEnd, images: np.ndarray) -> tuple[Tensor, Tensor]:
    parts = []
    for start in range(0, len(images), 256):
        inputs = federation.inputs(federation.dataset.x_train[images[start : start + 256]])
        hidden = front_end.lower(inputs)
        parts.append((front_end.exit1.embed(hidden), front_end.exit2.embed(front_end.upper(hidden))))
    return torch.cat([one for one, _ in parts]), torch.cat([two for _, two in parts])
