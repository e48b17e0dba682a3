"""Exit thresholds from held-out images of a client's own classes. No out-of-distribution image is needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import Exit
from harmony.core.config import ExitConfig
from harmony.core.scores import conformal_threshold

NEVER = float(np.finfo(np.float32).max)
"""No score reaches this threshold: nobody leaves at such an exit."""


def calibrate(score1: NDArray[np.float32], score2: NDArray[np.float32], config: ExitConfig) -> tuple[Exit, Exit]:
    """Thresholds for both exits from held-out in-distribution scores, (n,) each.

    Exit 1 passes on the share `pass1`. Exit 2 is set so that the share `offload` of *all* images goes to the cloud:
    those that left at exit 1 count as surest.
    """
    first = NEVER if config.pass1 == 1 else conformal_threshold(score1, config.pass1)
    second = conformal_threshold(np.where(score1 >= np.float32(first), np.inf, score2), config.offload)
    return (
        Exit(name="exit1", score=config.score, threshold=first, budget=config.pass1),
        Exit(name="exit2", score=config.score, threshold=min(second, NEVER), budget=config.offload),
    )
