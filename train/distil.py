"""Teach a new front end the features of a trained one, so that a frozen back end θ reads it too.

A newcomer's own images show θ's loss few classes: trained by it, the newcomer's features of all others drift to where θ
does not know them. The trained front ends' features are aligned with θ everywhere, so they are what it is taught, on
its own images and on images made of those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor

from harmony.core.checkpoint import CheckpointManifest
from harmony.core.errors import Diverged
from harmony.core.models import BackEnd, FrontEnd
from harmony.core.spec import Architecture
from harmony.train.method import cosine
from harmony.train.models import load_front_end
from harmony.train.widen import widened

BATCH = 64


class Taught(NamedTuple):
    """What is taught of n images: the feature at the cut (n, C, H, W), the gate's probabilities (n, classes)."""

    feature: Tensor
    gate: Tensor


def masters(checkpoint: Path, manifest: CheckpointManifest) -> dict[Architecture, FrontEnd]:
    """One front end for each architecture of the run, frozen: the mean of its clients' weights.

    They began as one network and were made personal by few steps, so the mean has what they share, and none's own.
    """
    sums: dict[Architecture, dict[str, Tensor]] = {}
    counts: dict[Architecture, int] = {}
    for record in manifest.clients:
        state = load_front_end(checkpoint, manifest, record).state_dict()
        so_far = sums.get(record.architecture)
        sums[record.architecture] = (
            state if so_far is None else {name: so_far[name] + value for name, value in state.items()}
        )
        counts[record.architecture] = counts.get(record.architecture, 0) + 1
    return {
        architecture: _frozen(
            architecture, manifest, {name: value / counts[architecture] for name, value in sum_.items()}
        )
        for architecture, sum_ in sums.items()
    }


def distil(
    front_end: FrontEnd,
    teacher: FrontEnd,
    back_end: BackEnd,
    batch: Callable[[int], Tensor],
    *,
    steps: int,
    rate: float,
    random: torch.Generator,
    on_step: Callable[[int, float], None] = lambda done, loss: None,
) -> None:
    """Train the front end, but exit 2 and the personal heads, in place, to do as the teacher does.

    batch: scaled images (n, C, H, W) of a step; exit 2 is taken as it is: all front ends of a run share it;
    on_step: told the steps done and the loss. Diverged if that is no longer a finite number.
    """
    moving = [
        value for name, value in front_end.named_parameters() if not name.startswith("exit2.") and ".head." not in name
    ]
    optimizer = torch.optim.Adam(moving, lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = cosine(rate, step, steps)
        inputs = widened(batch(step), random).to(memory_format=torch.channels_last)
        loss = _loss(front_end, back_end, inputs, _taught(teacher, inputs))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found = float(loss.detach())
        if not math.isfinite(found):
            mend = "lower --lr; nothing was written"
            raise Diverged(f"the loss is no longer finite after {step + 1} batches", mend=mend)
        on_step(step + 1, found)


def _loss(front_end: FrontEnd, back_end: BackEnd, inputs: Tensor, taught: Taught) -> Tensor:
    """The feature's error, the same as θ sees it, and exit 1's gate: each in units of what is taught."""
    hidden = front_end.lower(inputs)
    feature = front_end.upper(hidden)
    _, gate = front_end.exit1(hidden)
    seen = back_end.embed(taught.feature)
    return (
        F.mse_loss(feature, taught.feature) / taught.feature.var()
        + F.mse_loss(back_end.embed(feature), seen) / seen.var()
        + F.cross_entropy(gate, taught.gate)
    )


@torch.no_grad()
def _taught(teacher: FrontEnd, inputs: Tensor) -> Taught:
    """Exit 2's gate teaches exit 1's: it knows better."""
    feature = teacher.upper(teacher.lower(inputs))
    return Taught(feature, torch.softmax(teacher.exit2(feature)[1], 1))


def _frozen(architecture: Architecture, manifest: CheckpointManifest, state: dict[str, Tensor]) -> FrontEnd:
    classes = len(manifest.clients[0].classes.names)
    front_end = FrontEnd(architecture, manifest.image, manifest.feature, outputs=classes, gate=classes)
    front_end.load_state_dict(state)
    return front_end.requires_grad_(False)
