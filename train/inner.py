"""Simulated extractors across parameters: the front end as it will be once a client has made it its own.

The meta-learning step is MAML's (Finn, Abbeel, Levine 2017) without its second derivatives (section 5.2 there): the
gradient at the adapted weights is applied to the shared ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor

from harmony.train.losses import masked_cross_entropy
from harmony.train.supernet import Parameters, Trunk, Views, look


def personal_loss(weights: Parameters, views: Views, tokens: Tensor, own: Tensor) -> Tensor:
    """What personalisation minimises: both exits' cross-entropy among the client's own classes, own: (n, classes)."""
    losses = [
        masked_cross_entropy(gate(weights, exit_, embedding), tokens, own)
        for exit_, embedding in (("exit1", views.embed1), ("exit2", views.embed2))
    ]
    return losses[0] + losses[1]


def gate(weights: Parameters, exit_: str, embedding: Tensor) -> Tensor:
    """All-class logits (n, classes) of an exit's gate."""
    return F.linear(embedding, weights[f"{exit_}.gate.weight"], weights[f"{exit_}.gate.bias"])


def adapted(
    trunk: Trunk, weights: Parameters, inputs: Tensor, tokens: Tensor, own: Tensor, *, steps: int, rate: float
) -> Parameters:
    """The weights after some steps of personalisation on a support batch; as a function of `weights`, the identity
    plus a constant, so that gradients reach the shared weights as if nothing had been adapted (first order).

    The gates stay: every client has the same ones, whatever it makes its own.
    """
    for _ in range(steps):
        leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
        loss = personal_loss(leaves, look(trunk, leaves, inputs), tokens, own)
        moving = [name for name in leaves if ".gate." not in name]
        slopes = torch.autograd.grad(loss, [leaves[name] for name in moving])
        weights = weights | {name: weights[name] - rate * slope for name, slope in zip(moving, slopes, strict=True)}
    return weights
