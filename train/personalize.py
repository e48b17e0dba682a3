"""What a client makes its own at the end, on its own images: its heads, then its whole front end but the gates.

Only the loss among its own classes is minimised. It says nothing of foreign classes, so the features of those stay
where θ can read them; the server's loss on a client's own images would pull all features to those few classes.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harmony.core.models import ExitHead, FrontEnd
from harmony.train.federation import FRONT_END, HEADS, Federation, stream
from harmony.train.losses import masked_cross_entropy
from harmony.train.method import annealed, optimizer_of

BATCH = 64
EVALUATED = 256


def gate_heads(front_end: FrontEnd) -> None:
    """Let both heads begin as the gate's rows, in place."""
    for exit_ in (front_end.exit1, front_end.exit2):
        exit_.head.load_state_dict(_gate_rows(exit_).state_dict())


def personal(federation: Federation, index: int, front_end: FrontEnd) -> None:
    """Make the front end client `index`'s own, in place, as far as config.harmony.personalize says."""
    personal_heads(federation, index, front_end)
    if federation.config.harmony.personalize == "front-end":
        personal_front_end(federation, index, front_end)


def personal_front_end(federation: Federation, index: int, front_end: FrontEnd) -> None:
    """Train all of the front end but its gates, in place; kept only if its exits err less on held-out images."""
    before, shared = _held_out_loss(federation, index, front_end), copy.deepcopy(front_end.state_dict())
    settings = federation.config.harmony
    moving = [value for name, value in front_end.named_parameters() if ".gate." not in name]
    optimizer = optimizer_of(moving, federation.config, settings.personalize_rate)
    train = federation.clients[index].train
    for step in range(settings.personalize_steps):
        annealed((optimizer,), step, settings.personalize_steps)
        drawn = stream(federation.config.seed, FRONT_END, index, step).choice(train, BATCH, replace=len(train) < BATCH)
        optimizer.zero_grad(set_to_none=True)
        _exit_loss(federation, index, front_end, drawn).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if not _held_out_loss(federation, index, front_end) < before:
        front_end.load_state_dict(shared)


def _exit_loss(federation: Federation, index: int, front_end: FrontEnd, images: NDArray[np.int64]) -> Tensor:
    out = front_end(federation.inputs(federation.dataset.x_train[images]))
    tokens = federation.tokens_of(images)
    own = federation.own[index].expand(len(tokens), -1)
    return masked_cross_entropy(out.logits1, tokens, own) + masked_cross_entropy(out.logits2, tokens, own)


@torch.no_grad()
def _held_out_loss(federation: Federation, index: int, front_end: FrontEnd) -> float:
    images = federation.clients[index].holdout
    parts = [images[start : start + EVALUATED] for start in range(0, len(images), EVALUATED)]
    total = sum(float(_exit_loss(federation, index, front_end, part)) * len(part) for part in parts)
    return total / max(1, len(images))


def personal_heads(federation: Federation, index: int, front_end: FrontEnd) -> None:
    """Train both personal heads of client `index` in place, from the gate's rows.

    A head is kept only if it errs less than the gate's own-class rows on the client's held-out images; else those stay.
    """
    client = federation.clients[index]
    kept = [_embed(federation, front_end, images) for images in (client.train, client.holdout)]
    tokens = [federation.tokens_of(images) for images in (client.train, client.holdout)]
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
def _embed(federation: Federation, front_end: FrontEnd, images: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    parts = []
    for start in range(0, len(images), EVALUATED):
        inputs = federation.inputs(federation.dataset.x_train[images[start : start + EVALUATED]])
        hidden = front_end.lower(inputs)
        parts.append((front_end.exit1.embed(hidden), front_end.exit2.embed(front_end.upper(hidden))))
    return torch.cat([one for one, _ in parts]), torch.cat([two for _, two in parts])
