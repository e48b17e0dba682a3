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

    A uint8 image is looked up in a table of 256 values a channel, which `Preprocessor` itself filled.
    """

    def __init__(self, spec: ImageSpec, out: Floats | None = None) -> None:
        self._spec = spec
        self._shape, self._dtype = (spec.height, spec.width, spec.channels), np.dtype(spec.dtype)
        self._scale = Preprocessor(spec)
        self._tables = _tables(spec) if spec.dtype == "uint8" else ()
        self._out = np.empty((1, spec.channels, spec.height, spec.width), np.float32) if out is None else out
        self._planes = [self._out[0, channel] for channel in range(spec.channels)]

    def __call__(self, image: NDArray[Any]) -> Floats:
        """The buffer, valid until the next call. InvalidInput for another shape or type, NaN or infinity."""
        if image.shape != self._shape or image.dtype != self._dtype:
            raise InvalidInput(f"has {describe(image)}, the model takes {self._spec}", where="image")
        if not self._tables:
            return self._scale(image[None])
        for channel, table in enumerate(self._tables):
            table.take(image[:, :, channel], out=self._planes[channel], mode="clip")  # mode: writes without a copy
        return self._out


def describe(image: NDArray[Any]) -> str:
    """Shape and type in the words of ImageSpec."""
    return f"{'x'.join(map(str, image.shape))} {image.dtype}"


def _tables(spec: ImageSpec) -> tuple[Floats, ...]:
    """What each of the 256 values becomes, (256,) a channel."""
    ramp = np.arange(256, dtype=np.uint8)[:, None, None, None]
    one_pixel = spec.model_copy(update={"height": 1, "width": 1})
    scaled = Preprocessor(one_pixel)(np.broadcast_to(ramp, (256, 1, 1, spec.channels)))
    return tuple(np.ascontiguousarray(scaled[:, channel, 0, 0]) for channel in range(spec.channels))
