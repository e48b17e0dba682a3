"""Images that show nothing are still images: of the spec's shape and type, and of the right brightness."""

from __future__ import annotations

import numpy as np
import pytest

from harmony.bench.pictures import grey, noise
from harmony.core.data import load
from harmony.core.spec import ImageSpec

BYTES = load("fashion-mnist-mini").image_spec()
FLOATS = BYTES.model_copy(update={"dtype": "float32"})


@pytest.mark.parametrize(("spec", "top"), [(BYTES, 255), (FLOATS, 1.0)])
def test_shape_type_and_range(spec: ImageSpec, top: float) -> None:
    one, many = grey(spec), noise(spec, 3)
    assert (one.shape, many.shape) == ((28, 28, 1), (3, 28, 28, 1))
    assert one.dtype == many.dtype == spec.dtype
    assert np.unique(one).tolist() == [pytest.approx(top / 2, rel=0.01)]
    assert many.mean() == pytest.approx(top / 2, rel=0.05)
    assert 0 <= many.min() < 0.01 * top
    assert 0.99 * top < many.max() <= top


def test_noise_is_that_of_its_seed() -> None:
    assert np.array_equal(noise(BYTES, 2, seed=1), noise(BYTES, 2, seed=1))
    assert not np.array_equal(noise(BYTES, 2, seed=1), noise(BYTES, 2, seed=2))
