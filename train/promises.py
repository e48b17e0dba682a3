"""What a run would give, had its devices promised to send more or fewer images of their own classes.

A promise bounds what is sent. With the cloud's word it need not bound what the cloud answers, too: where the cloud
takes an image for one of the device's own classes, the device's answer stands. How sure the cloud has to be is
calibrated as the exits are, on the device's held-out images: the run's own promise is kept for what the cloud answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from harmony.core.adaptive import HeldOut
from harmony.core.scores import conformal_threshold
from harmony.core.spec import Frozen
from harmony.train.verdict import Bools, Verdict

BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


class BudgetCurve(Frozen):
    """All clients, mean, by thresholds that follow the stream. Shares of 1; those of images at the largest ρ.

    budget: at most this share of own images is sent (`exits.offload`); adaptive: device and cloud together at every ρ;
    id_to_server, ood_to_client: of in-distribution images that were sent, of the others that stayed; word: as adaptive,
    with the cloud's word; id_by_server: of in-distribution images that the cloud then answered. Both are None for a
    promise no larger than the run's own, and where its held-out images are not at hand.
    """

    budget: float
    adaptive: tuple[float, ...]
    id_to_server: float
    ood_to_client: float | None
    word: tuple[float, ...] | None = None
    id_by_server: float | None = None


def promised(
    verdict: Verdict, parts: Mapping[float, Bools], held_out: HeldOut, own: Verdict | None
) -> tuple[BudgetCurve, ...]:
    """One client, a curve a budget. parts: by ρ, which of the images are in the mix; own: of its held-out images."""
    return tuple(_promised(budget, verdict, [parts[rho] for rho in sorted(parts)], held_out, own) for budget in BUDGETS)


def _promised(
    budget: float, verdict: Verdict, parts: Sequence[Bools], held_out: HeldOut, own: Verdict | None
) -> BudgetCurve:
    threshold = held_out.threshold(budget)
    sent = [verdict.sent_adaptively(part, held_out, threshold) for part in parts]
    inside, outside = parts[-1] & verdict.is_id, parts[-1] & ~verdict.is_id
    curve = BudgetCurve(
        budget=budget,
        adaptive=_accuracies(verdict, sent, parts),
        id_to_server=float(sent[-1][inside].mean()),
        ood_to_client=float(1 - sent[-1][outside].mean()) if outside.any() else None,
    )
    if own is None or own.budget is None or budget <= own.budget:
        return curve
    # Of what stays on the device nothing is answered by the cloud, however it would take it.
    word = conformal_threshold(np.where(own.surety < np.float32(threshold), own.mass, np.inf), own.budget)
    answered = [one & (verdict.mass < word) for one in sent]
    known = {"word": _accuracies(verdict, answered, parts), "id_by_server": float(answered[-1][inside].mean())}
    return curve.model_copy(update=known)


def _accuracies(verdict: Verdict, clouds: Sequence[Bools], parts: Sequence[Bools]) -> tuple[float, ...]:
    return tuple(float(verdict.right_if(one)[part].mean()) for one, part in zip(clouds, parts, strict=True))


def mean_promised(clients: Sequence[Sequence[BudgetCurve]]) -> tuple[BudgetCurve, ...]:
    """The mean over clients of each budget's curve; empty without any."""
    return tuple(_mean(column) for column in zip(*clients, strict=True))


def _mean(column: Sequence[BudgetCurve]) -> BudgetCurve:
    def mean(name: str) -> float | tuple[float, ...] | None:
        known = [value for one in column if (value := getattr(one, name)) is not None]
        return np.mean(known, 0).tolist() if known else None

    return BudgetCurve.model_validate({name: mean(name) for name in BudgetCurve.model_fields})
