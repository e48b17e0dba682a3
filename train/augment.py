"""Random crops and mirrored images (Krizhevsky et al. 2012), for runs that see every image many times."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8] | NDArray[np.float32]


def augmented(images: Images, random: np.random.Generator, *, shift: int, mirror: bool) -> Images:
    """(n, H, W, C) → as many, each moved by at most `shift` pixels either way and, with `mirror`, every second turned.

    What comes in from outside is the image's own border, reflected; so shift is less than either side.
    """
    n, height, width = images.shape[:3]
    down, across = random.integers(-shift, shift + 1, (2, n, 1))
    rows, columns = _reflected(np.arange(height) + down, height), _reflected(np.arange(width) + across, width)
    if mirror:
        columns = np.where(random.random((n, 1)) < 0.5, columns[:, ::-1], columns)
    moved: Images = images[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved


def _reflected(at: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Places beyond either end of 0 … size − 1, as in a mirror that stands on the last one."""
    inside: NDArray[np.int64] = size - 1 - np.abs(size - 1 - np.abs(at))
    return inside
