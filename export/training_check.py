"""Is an engine's training step the step that PyTorch would make? Asked of every program before it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from harmony.core.errors import ParityFailed
from harmony.core.training import BATCH, EXCLUDED, OUTPUTS
from harmony.export.training_step import Logits, Step, Weights, adam, flatten, loss_of

TOLERANCE = 1e-4
"""Of a tensor's gradient, relative to its largest entry; of everything else, relative to 1 + its largest entry."""
Run = Callable[[Sequence[Tensor]], Mapping[str, NDArray[np.float32]]]


def check_step(run: Run, logits: Logits, weights: Weights, step: Step, *, who: str) -> float:
    """The largest relative difference between a tensor's gradient in `run` and in eager PyTorch, on seeded noise.

    ParityFailed, naming the tensor, above TOLERANCE, or if the loss or the next weights and moments differ.
    """
    inputs = _inputs(step, weights)
    expected, found = _eager(logits, weights, inputs), run(inputs)
    worst, start = 0.0, 0
    for name, one in weights.items():
        part = slice(start, start + one.numel())
        error = _relative(found["gradient"][part], expected["gradient"][part], at_least=1e-6)
        _require(error, f"{who}: gradient of {name}")
        worst, start = max(worst, error), part.stop
    for name in (one for one in OUTPUTS if one != "gradient"):
        _require(_relative(found[name], expected[name], at_least=1.0), f"{who}: {name}")
    return worst


def _inputs(step: Step, weights: Weights) -> tuple[Tensor, ...]:
    """A step in the middle of training, one class left out and the last sample only filled up with."""
    random = torch.Generator().manual_seed(0)
    classes, samples = step.inputs[5].shape[0], step.inputs[6]
    flat = flatten({name: _lively(one, random) for name, one in weights.items()})
    mean, square = 0.1 * torch.randn(flat.shape, generator=random), 0.1 * torch.rand(flat.shape, generator=random)
    mask = torch.zeros(classes)
    mask[-1] = EXCLUDED
    labels = torch.randint(0, classes - 1, (BATCH,), generator=random)
    target = functional.one_hot(labels, classes).float() / (BATCH - 1)
    target[-1] = 0
    return flat, mean, square, torch.tensor([1e-2]), target, mask, torch.randn(samples.shape, generator=random)


def _lively(weight: Tensor, random: torch.Generator) -> Tensor:
    """Around the weight's start, with nothing left at 0, and spread as a trained one."""
    spread = 1 / max(1, weight[0].numel()) ** 0.5 if weight.dim() > 1 else 0.2
    centre = 1.0 if weight.dim() == 1 and bool((weight == 1).all()) else 0.0
    return centre + spread * torch.randn(weight.shape, generator=random)


def _eager(logits: Logits, weights: Weights, inputs: Sequence[Tensor]) -> dict[str, NDArray[np.float32]]:
    flat, mean, square, rate, target, mask, batch = inputs
    parts = torch.split(flat, [one.numel() for one in weights.values()])
    leaves = {
        name: part.reshape(one.shape).clone().requires_grad_()
        for (name, one), part in zip(weights.items(), parts, strict=True)
    }
    loss = loss_of(logits(leaves, batch), target, mask)
    gradient = torch.cat([one.reshape(-1) for one in torch.autograd.grad(loss, list(leaves.values()))])
    values = (loss.detach().reshape(1), gradient, *adam(flat, mean, square, gradient, rate))
    return {name: value.numpy() for name, value in zip(OUTPUTS, values, strict=True)}


def _relative(found: NDArray[np.float32], expected: NDArray[np.float32], *, at_least: float) -> float:
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max()) / max(at_least, float(np.abs(expected).max()))


def _require(error: float, who: str) -> None:
    if not error <= TOLERANCE:
        problem = f"differs from PyTorch's by {error:.3g} of its largest entry"
        raise ParityFailed(problem, where=who, mend="please report this; --trainable none leaves it out")
