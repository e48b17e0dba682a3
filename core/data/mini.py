"""The embedded data set: 10,000 training and 2,000 test images of Fashion-MNIST, balanced over its 10 classes.

It is MIT-licensed, (c) 2017 Zalando SE (LICENSE-fashion-mnist beside this file); `make_mini` made it.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from harmony.core.data.bounded import LIMITS, read
from harmony.core.data.dataset import Dataset
from harmony.core.data.npz import from_arrays, read_arrays
from harmony.core.errors import DataForeign

NAME = "fashion-mnist-mini"
PATH = Path(__file__).with_name("fashion_mnist_mini.npz")
SHA256 = "b64f70f10c4564a1d1f30c35d9fae2a26363abe18d10c909bef038f4d5d3ab39"
MAX_BYTES = 6_000_000


def load_mini() -> Dataset:
    """The embedded data set, its bytes checked: images (n, 28, 28, 1) uint8. DataForeign if the file was edited."""
    data = read(PATH, MAX_BYTES)
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise DataForeign("not the embedded data set", where=PATH, mend="install harmony-sfl again")
    return from_arrays(NAME, read_arrays(io.BytesIO(data), PATH, LIMITS), PATH)
