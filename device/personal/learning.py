"""The loop: batches of the user's images through a training step, until the plan is done or the seconds are over."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.core.errors import Diverged
from harmony.core.training import BATCH, EXCLUDED
from harmony.device.personal.budget import Budget
from harmony.device.personal.steps import Floats, Step

OnStep = Callable[[str, int, int], None]
"""(what is done, steps done, of how many)."""


class Plan(NamedTuple):
    """How long and how fast. rate: Adam's at the start; it falls to zero along a cosine."""

    epochs: int
    rate: float
    seed: int = 0


class Lesson(NamedTuple):
    """What is learnt from. batch: (indices) → inputs (n, …); labels: (n,); own: classes that take part."""

    batch: Callable[[NDArray[np.int64]], Floats]
    labels: NDArray[np.int64]
    own: tuple[int, ...]
    classes: int


def learn(
    step: Step, weights: Floats, lesson: Lesson, plan: Plan, budget: Budget, *, on_step: Callable[[int, int], None]
) -> tuple[Floats, int]:
    """Train `weights` (p,); the weights after the last step, and how many steps there were.

    Diverged if a loss is not finite; ConfigError if the budget does not allow one step.
    """
    mask = np.full(lesson.classes, EXCLUDED, np.float32)
    mask[list(lesson.own)] = 0
    total = plan.epochs * -(-len(lesson.labels) // BATCH)
    step.start(weights)
    for done, chosen in enumerate(_batches(len(lesson.labels), plan)):
        if done and budget.spent():
            return step.weights(), done
        rate = plan.rate * 0.5 * (1 + np.cos(np.pi * done / total))
        loss = step.run(rate, *_filled(lesson, chosen, mask))
        budget.require_memory()
        if not np.isfinite(loss):
            raise Diverged(f"the loss is {loss} after {done + 1} steps", mend="lower --rate; nothing was changed")
        on_step(done + 1, total)
    return step.weights(), total


def _batches(count: int, plan: Plan) -> list[NDArray[np.int64]]:
    random = np.random.default_rng(plan.seed)
    orders = [random.permutation(count) for _ in range(plan.epochs)]
    return [order[start : start + BATCH] for order in orders for start in range(0, count, BATCH)]


def _filled(lesson: Lesson, chosen: NDArray[np.int64], mask: Floats) -> tuple[Floats, Floats, Floats]:
    """target, mask and inputs of a batch; places that are left over count for nothing."""
    inputs = lesson.batch(chosen)
    target = np.zeros((BATCH, lesson.classes), np.float32)
    target[np.arange(len(chosen)), lesson.labels[chosen]] = 1 / len(chosen)
    if len(chosen) < BATCH:
        inputs = np.concatenate([inputs, np.zeros((BATCH - len(chosen), *inputs.shape[1:]), np.float32)])
    return target, mask, inputs
