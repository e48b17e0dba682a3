"""Image to model input on the hot path: the same numbers as `harmony.core.preprocess`, without its allocations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmony.core.errors import InvalidInput
from harmony.core.preprocess import Preprocessor
from harmony.core.spec import ImageSpec

Floats = NDArray[np.float32]


class Prepare:
    """Checks one image (H, W, C) and scales it into a contiguous buffer (1, C, H, W): `out`, or one of its own.

    A uint8 image is put there first and scaled in place, which on a large image is quicker than a table of 256 values
    or a multiplication that converts.
    """

    def __init__(self, spec: ImageSpec, out: Floats | None = None) -> None:
        self._spec = spec
        self._shape, self._dtype = (spec.height, spec.width, spec.channels), np.dtype(spec.dtype)
        self._preprocess = Preprocessor(spec)
        self._scale, self._shift = self._preprocess.scale, self._preprocess.shift
        self._out = np.empty((1, spec.channels, spec.height, spec.width), np.float32) if out is None else out
        self._planes = self._out[0]
        self._pixels = self._planes.transpose(1, 2, 0)
        self._plain = spec.dtype == "uint8"

    def __call__(self, image: NDArray[Any]) -> Floats:
        """The buffer, valid until the next call. InvalidInput for another shape or type, NaN or infinity."""
        if image.shape != self._shape or image.dtype != self._dtype:
            raise InvalidInput(f"has {describe(image)}, the model takes {self._spec}", where="image")
        if not self._plain:
            return self._preprocess(image[None])  # which looks for what is not finite
        planes = self._planes
        np.copyto(self._pixels, image)
        np.multiply(planes, self._scale, planes)
        np.add(planes, self._shift, planes)
        return self._out


def describe(image: NDArray[Any]) -> str:
    """Shape and type in the words of ImageSpec."""
    return f"{'x'.join(map(str, image.shape))} {image.dtype}"
