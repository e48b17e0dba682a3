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
from collections.abc import Iterable, Sequence
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
    pushes = [torch.stack(_pushed(alike)).reshape(len(alike), *shape) for shape, alike in by_shape.items()]
    for (shape, alike), steps in zip(by_shape.items(), orthogonal(pushes), strict=True):
        size = rate * max(1.0, shape[0] / shape[1]) ** 0.5
        moves = list(steps.reshape(len(alike), *alike[0].value.shape))
        torch._foreach_sub_([one.value for one in alike], moves, alpha=size)


def _pushed(alike: list[Moving]) -> list[Tensor]:
    """Gradients with Nesterov's momentum: where their running means are going."""
    gradients = [one.gradient for one in alike]
    means = [_kept(one, "momentum")[0] for one in alike]
    torch._foreach_lerp_(means, gradients, 1 - MOMENTUM)
    return list(torch._foreach_lerp(gradients, means, MOMENTUM))


def _adam(parameters: list[Moving], rate: float) -> None:
    by_age: dict[int, list[Moving]] = defaultdict(list)
    for one in parameters:
        if "step" not in one.state:
            one.state["step"] = torch.zeros(())  # on the CPU: it is asked for at every step
        by_age[int(one.state["step"].add_(1))].append(one)
    for age, alike in by_age.items():
        gradients = [one.gradient for one in alike]
        means, squares = (list(kept) for kept in zip(*(_kept(one, "mean", "square") for one in alike), strict=True))
        torch._foreach_lerp_(means, gradients, 1 - BETAS[0])
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - BETAS[1])
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, (1 - BETAS[1] ** age) ** 0.5)
        torch._foreach_add_(roots, EPSILON)
        values = [one.value for one in alike]
        torch._foreach_addcdiv_(values, means, roots, value=-rate / (1 - BETAS[0] ** age))


def _kept(one: Moving, *names: str) -> list[Tensor]:
    """Running means by name, zeros at first."""
    for name in names:
        if name not in one.state:
            one.state[name] = torch.zeros_like(one.value)
    return [one.state[name] for name in names]


def is_matrix(weight: Tensor) -> bool:
    """Whether a parameter is a convolution that mixes channels: (outputs, inputs, height, width), both above 1."""
    return weight.dim() == 4 and min(weight.shape[:2]) > 1


def orthogonal(stacks: Sequence[Tensor]) -> list[Tensor]:
    """Stacks of matrices (k, n, m) → each matrix with its singular values brought near 1 (Newton–Schulz), zeros stay.

    The polynomial is one of x·xᵀ alone, so the sweeps multiply (n, n) and never (n, m), and all stacks of one smaller
    side sweep together.
    """
    wide = [_unit(one.mT if one.shape[1] > one.shape[2] else one) for one in stacks]
    factors: dict[int, Tensor] = {}
    by_side: dict[int, list[int]] = defaultdict(list)
    for place, one in enumerate(wide):
        by_side[one.shape[1]].append(place)
    for places in by_side.values():
        swept = _swept(torch.cat([torch.bmm(wide[place], wide[place].mT) for place in places]))
        factors |= zip(places, torch.split(swept, [len(wide[place]) for place in places]), strict=True)
    steps = [torch.bmm(factors[place], one) for place, one in enumerate(wide)]
    return [step if step.shape == one.shape else step.mT for step, one in zip(steps, stacks, strict=True)]


def _unit(matrices: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    return matrices / length.clamp(min=1e-7)


def _swept(gram: Tensor) -> Tensor:
    """x·xᵀ (k, n, n) → q (k, n, n), with q·x what the sweeps make of x."""
    product = factor = _factor(gram)
    for _ in range(SWEEPS - 1):
        gram = torch.bmm(factor, torch.bmm(gram, factor))
        factor = _factor(gram)
        product = torch.bmm(factor, product)
    return product


def _factor(gram: Tensor) -> Tensor:
    """What one sweep multiplies x by: a + b·x·xᵀ + c·(x·xᵀ)²."""
    a, b, c = QUINTIC
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor
