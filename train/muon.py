"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): steps whose matrices have been made orthogonal.

A convolution's weight is taken for the matrix (outputs, inputs · kernel). Its step is the momentum of its gradients
with all singular values brought near 1, so that directions that few images ask for are learnt as fast as the loudest
ones. Like Adam it needs the sum of the clients' gradients alone. What is no such matrix (norms, biases, linear heads,
depthwise kernels, a stem of one channel) is left to Adam (Kingma, Ba 2015).

torch.optim.Muon takes two-dimensional parameters only and multiplies in bfloat16; here it is float32, so that the bits
do not hang on whether a processor has bfloat16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOMENTUM, SWEEPS = 0.9, 5
QUINTIC = (3.4445, -4.7750, 2.0315)
"""x ↦ a·x + b·x³ + c·x⁵, which takes every singular value in (0, 1] to about 1 in a few sweeps (as published)."""
BETAS, EPSILON = (0.9, 0.999), 1e-8


class Muon(torch.optim.Optimizer):
    """Orthogonal steps of size `matrix_rate` for convolutions, Adam's of size `rate` for all else.

    Each of its two groups says its own rate under "rate", which is where annealing starts from.
    """

    def __init__(self, parameters: Iterable[Tensor], *, rate: float, matrix_rate: float) -> None:
        every = list(parameters)
        kinds = (True, matrix_rate), (False, rate)
        groups: list[dict[str, Any]] = [
            {"params": [one for one in every if is_matrix(one) is kind], "orthogonal": kind, "lr": first, "rate": first}
            for kind, first in kinds
        ]
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            moving = [Moving(one, one.grad, self.state[one]) for one in group["params"] if one.grad is not None]
            (_orthogonal if group["orthogonal"] else _adam)(moving, group["lr"])


class Moving(NamedTuple):
    """A parameter, its gradient, and what the optimizer keeps of it."""

    value: Tensor
    gradient: Tensor
    state: dict[str, Tensor]


def _orthogonal(parameters: list[Moving], rate: float) -> None:
    by_shape: dict[tuple[int, int], list[Moving]] = defaultdict(list)
    for one in parameters:
        by_shape[one.value.shape[0], one.value[0].numel()].append(one)
    for (outputs, inputs), alike in by_shape.items():
        pushes = torch.stack([_pushed(one).reshape(outputs, inputs) for one in alike])
        size = rate * max(1.0, outputs / inputs) ** 0.5
        for one, step in zip(alike, orthogonal(pushes), strict=True):
            one.value.sub_(step.reshape(one.value.shape), alpha=size)


def _pushed(one: Moving) -> Tensor:
    """The gradient with Nesterov's momentum: where its running mean is going."""
    mean = one.state.setdefault("momentum", torch.zeros_like(one.value))
    return torch.lerp(one.gradient, mean.lerp_(one.gradient, 1 - MOMENTUM), MOMENTUM)


def _adam(parameters: list[Moving], rate: float) -> None:
    for value, gradient, state in parameters:
        mean, square = (state.setdefault(name, torch.zeros_like(value)) for name in ("mean", "square"))
        done = float(state.setdefault("step", torch.zeros(())).add_(1))
        mean.lerp_(gradient, 1 - BETAS[0])
        square.lerp_(gradient.square(), 1 - BETAS[1])
        root = (square / (1 - BETAS[1] ** done)).sqrt_().add_(EPSILON)
        value.addcdiv_(mean, root, value=-rate / (1 - BETAS[0] ** done))


def is_matrix(weight: Tensor) -> bool:
    """Whether a parameter is a convolution that mixes channels: (outputs, inputs, height, width), both above 1."""
    return weight.dim() == 4 and min(weight.shape[:2]) > 1


def orthogonal(matrices: Tensor) -> Tensor:
    """(k, n, m) → each with its singular values brought near 1 (Newton–Schulz); a matrix of zeros stays."""
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    a, b, c = QUINTIC
    for _ in range(SWEEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
