"""Named arrays in a safetensors file. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save

from harmony.core.errors import ArtifactCorrupt

Tensors = Mapping[str, NDArray[Any]]
_ERRORS = (SafetensorError, OSError, ValueError, AttributeError, TypeError)  # the last two: float8, bfloat16


def load_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file of an opened checkpoint or bundle; ArtifactCorrupt if they cannot be parsed."""
    try:
        tensors: dict[str, NDArray[Any]] = load_file(path)
    except _ERRORS as error:
        raise ArtifactCorrupt(f"cannot be read: {error}", where=path, mend="copy the folder again") from None
    return tensors


def parse_tensors(content: bytes, where: Path) -> dict[str, NDArray[Any]]:
    """As `load_tensors`, of a file that was read already."""
    try:
        tensors: dict[str, NDArray[Any]] = load(content)
    except _ERRORS as error:
        raise ArtifactCorrupt(f"cannot be read: {error}", where=where, mend="copy the folder again") from None
    return tensors


def save_tensors(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file. The bytes go through an ordinary write, so that a full disk is an OSError."""
    # asarray, as ascontiguousarray would give a scalar an axis
    path.write_bytes(save({name: np.asarray(value, order="C") for name, value in tensors.items()}))
