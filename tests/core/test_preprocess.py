"""Images become contiguous planes with the values of the formula, or a named error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harmony.core.errors import InvalidInput
from harmony.core.preprocess import Preprocessor
from harmony.core.spec import ImageSpec

RNG = np.random.default_rng(0)
BYTES = ImageSpec(height=5, width=7, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
FLOATS = BYTES.model_copy(update={"dtype": "float32"})


def images(spec: ImageSpec, n: int = 4) -> NDArray[Any]:
    shape = (n, spec.height, spec.width, spec.channels)
    return RNG.integers(0, 256, shape, np.uint8) if spec.dtype == "uint8" else RNG.normal(size=shape).astype(np.float32)


def reference(values: NDArray[Any], spec: ImageSpec) -> NDArray[np.float64]:
    unit = values.astype(np.float64) / (255 if spec.dtype == "uint8" else 1)
    out: NDArray[np.float64] = ((unit - spec.mean) / spec.std).transpose(0, 3, 1, 2)
    return out


@pytest.mark.parametrize("spec", [BYTES, FLOATS])
@pytest.mark.parametrize("n", [0, 1, 4])
def test_it_is_the_formula_in_contiguous_planes(spec: ImageSpec, n: int) -> None:
    values = images(spec, n)
    before = values.copy()
    found = Preprocessor(spec)(values)
    assert found.shape == (n, 3, 5, 7)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, reference(values, spec), rtol=1e-5, atol=2e-6)
    assert (values == before).all()


@pytest.mark.parametrize("spec", [BYTES, FLOATS])
def test_every_byte_value_and_channel_is_right(spec: ImageSpec) -> None:
    ramp = np.arange(256).repeat(3).reshape(1, 16, 16, 3).astype(spec.dtype)
    square = spec.model_copy(update={"height": 16, "width": 16})
    np.testing.assert_allclose(Preprocessor(square)(ramp), reference(ramp, square), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("spec", [BYTES, FLOATS])
def test_strides_do_not_matter(spec: ImageSpec) -> None:
    preprocess, values = Preprocessor(spec), images(spec)
    expected = preprocess(values)
    planes = np.ascontiguousarray(values.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    wide = np.zeros((8, 5, 7, 6), values.dtype)
    wide[::2, :, :, ::2] = values
    mirrored = np.ascontiguousarray(values[::-1, ::-1, ::-1])[::-1, ::-1, ::-1]
    values.flags.writeable = False
    for other in (planes, wide[::2, :, :, ::2], mirrored, values):
        found = preprocess(other)
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((5, 7, 3), np.uint8),
        np.zeros((1, 7, 5, 3), np.uint8),
        np.zeros((1, 3, 5, 7), np.uint8),
        np.zeros((1, 5, 7, 1), np.uint8),
        np.zeros((1, 5, 7), np.uint8),
        np.zeros((1, 5, 7, 3), np.float32),
        np.zeros((1, 5, 7, 3), np.int64),
        np.zeros((1, 5, 7, 3), np.bool_),
        np.zeros((1, 5, 7, 3), object),
        np.uint8(3),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
def test_another_shape_or_type_says_both(wrong: Any) -> None:
    with pytest.raises(InvalidInput, match=r"image: .*5x7x3 uint8") as caught:
        Preprocessor(BYTES)(wrong)
    assert str(wrong.shape) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_values_that_are_not_finite_or_become_so_are_refused(value: float) -> None:
    values = images(FLOATS)
    values[2, 3, 4, 1] = value
    with pytest.raises(InvalidInput, match=r"image: .*not finite"):
        Preprocessor(FLOATS)(values)


def test_the_steepest_spec_stays_finite() -> None:
    steep = BYTES.model_copy(update={"mean": (1.0, 0.0, -1.0), "std": (1e-30, 1e-30, 1e30)})
    assert np.isfinite(Preprocessor(ImageSpec(**steep.model_dump()))(np.full((1, 5, 7, 3), 255, np.uint8))).all()
