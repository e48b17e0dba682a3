"""Exit thresholds from held-out images of a client's own classes. No out-of-distribution image is needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import Exit
from harmony.core.calibration import NEVER, thresholds
from harmony.core.config import ExitConfig

__all__ = ["NEVER", "calibrate"]


def calibrate(score1: NDArray[np.float32], score2: NDArray[np.float32], config: ExitConfig) -> tuple[Exit, Exit]:
    """Both exits as the config wants them, from held-out in-distribution scores, (n,) each."""
    first, second = thresholds(score1, score2, config.pass1, config.offload)
    return (
        Exit(name="exit1", score=config.score, threshold=first, budget=config.pass1),
        Exit(name="exit2", score=config.score, threshold=second, budget=config.offload),
    )
