"""Exit thresholds from scores of held-out in-distribution images. No torch, and no foreign image is needed."""

from __future__ import annotations

import numpy as np

from harmony.core.scores import Floats, conformal_threshold

NEVER = float(np.finfo(np.float32).max)
"""No score reaches this threshold: nobody leaves at such an exit."""


def thresholds(score1: Floats, score2: Floats, pass1: float, offload: float) -> tuple[float, float]:
    """Thresholds of both exits from their scores of held-out images, (n,) each.

    Exit 1 passes on the share `pass1`. Exit 2 is set so that the share `offload` of *all* images goes to the cloud:
    those that left at exit 1 count as surest.
    """
    first = NEVER if pass1 == 1 else conformal_threshold(score1, pass1)
    second = conformal_threshold(np.where(score1 >= np.float32(first), np.inf, score2), offload)
    return first, min(second, NEVER)
