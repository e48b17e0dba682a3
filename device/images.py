"""Images from files, as the bundle's ImageSpec wants them; anything else is a named error."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from harmony.core.errors import DataForeign, DataMissing, InvalidInput
from harmony.core.spec import ImageSpec
from harmony.device.prepare import describe

_MODES = {1: ("L", "1"), 3: ("RGB",)}
_PICTURES = {".png", ".jpg", ".jpeg"}


def read_image(path: Path, spec: ImageSpec) -> NDArray[Any]:
    """One image (H, W, C) from a .png, .jpg or .npy file ((H, W) too, if it has one channel).

    Nothing is resized or converted between colour and grey: what the front end was not trained on is InvalidInput,
    naming the file, what it holds and what is expected. DataMissing, DataForeign for no file, or a damaged one.
    """
    if not path.is_file():
        raise DataMissing("no such file", where=path, mend="check the path")
    suffix = path.suffix.lower()
    if suffix not in (*_PICTURES, ".npy"):
        raise DataForeign(f"'{suffix}' is no image format", where=path, mend="give .png, .jpg or .npy")
    image = _read_array(path, spec) if suffix == ".npy" else _read_picture(path, spec)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape != (spec.height, spec.width, spec.channels) or image.dtype != np.dtype(spec.dtype):
        raise InvalidInput(
            f"holds {describe(image)}, the model takes {spec}", where=path, mend="resize or convert it first"
        )
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise InvalidInput("holds numbers that are not finite", where=path, mend="give values that are")
    return image


def _read_array(path: Path, spec: ImageSpec) -> NDArray[Any]:
    limit = 16 * spec.height * spec.width * spec.channels + 4096  # more than an array of the right shape can need
    try:
        if path.stat().st_size > limit:
            raise InvalidInput(f"is larger than any {spec} array", where=path, mend="give one image a file")
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise DataForeign(f"cannot be read: {error}", where=path, mend="save it again with numpy.save") from None
    if not isinstance(loaded, np.ndarray):
        raise DataForeign("is an archive, not an array", where=path, mend="save it with numpy.save")
    return loaded


def _read_picture(path: Path, spec: ImageSpec) -> NDArray[Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as picture:
                if picture.size != (spec.width, spec.height) or picture.mode not in _MODES.get(spec.channels, ()):
                    raise InvalidInput(
                        f"holds {picture.height}x{picture.width} {picture.mode}, the model takes {spec}",
                        where=path, mend="resize or convert it first",
                    )  # fmt: skip
                return np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError,
            Image.DecompressionBombWarning) as error:  # fmt: skip
        raise DataForeign(f"cannot be read: {error}", where=path, mend="is it a whole PNG or JPEG?") from None
