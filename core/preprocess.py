"""Image to model input: the same few lines for training, export and device. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harmony.core.errors import InvalidInput
from harmony.core.spec import ImageSpec


class Preprocessor:
    """Checks an image against an ImageSpec and scales it. Constants are folded once, for one multiply and one add.

    scale, shift: (C, 1, 1) float32.
    """

    def __init__(self, spec: ImageSpec) -> None:
        unit = 255.0 if spec.dtype == "uint8" else 1.0
        mean, std = np.asarray(spec.mean), np.asarray(spec.std)
        self._spec = spec
        self._shape = (spec.height, spec.width, spec.channels)
        self._dtype = np.dtype(spec.dtype)
        self.scale = (1.0 / (unit * std)).astype(np.float32)[:, None, None]
        self.shift = (-mean / std).astype(np.float32)[:, None, None]

    def __call__(self, images: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, H, W, C) → (n, C, H, W) float32, contiguous. InvalidInput for another shape or type, NaN or infinity."""
        if images.dtype != self._dtype or images.ndim != 4 or images.shape[1:] != self._shape:
            raise InvalidInput(
                f"images of shape {images.shape} {images.dtype}, the model takes n images of {self._spec}",
                where="image",
            )
        planes = images.transpose(0, 3, 1, 2)
        out = np.empty(planes.shape, np.float32)  # C order: a permuted input is silently wrong in some engines
        with np.errstate(over="ignore", invalid="ignore"):  # judged by what they give, below
            np.multiply(planes, self.scale, out=out, casting="unsafe")
            out += self.shift
        if self._dtype.kind == "f" and not np.isfinite(out).all():
            raise InvalidInput("the image holds values that are not finite, or too large to scale", where="image")
        return out
