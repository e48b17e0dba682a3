"""Images that show nothing, for what costs the same whatever they show: as a camera gives them, unscaled. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmony.core.spec import ImageSpec


def grey(spec: ImageSpec) -> NDArray[Any]:
    """One image (H, W, C) of medium grey, in the spec's type."""
    return np.full((spec.height, spec.width, spec.channels), 128 if spec.dtype == "uint8" else 0.5, spec.dtype)


def noise(spec: ImageSpec, count: int, seed: int = 0) -> NDArray[Any]:
    """Images (count, H, W, C) of evenly spread noise, in the spec's type: 0 … 255, or 0 to 1."""
    values = np.random.default_rng(seed).random((count, spec.height, spec.width, spec.channels))
    return (values * 256).astype(np.uint8) if spec.dtype == "uint8" else values.astype(np.float32)
