"""What an answer holds: which outputs a request wants, in which form, and their values.

    probabilities   FP32 [n, tokens]
    own_mass        FP32 [n]          share of the probabilities on the caller's own tokens, if it named them

`classification: k` turns an output into BYTES [n, k]: the k largest, each as "probability:token".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmony.cloud.refusal import malformed

Floats = NDArray[np.float32]
PROBABILITIES, OWN_MASS = "probabilities", "own_mass"
_LENGTH = struct.Struct("<I")


class Wanted(NamedTuple):
    """One output of an answer. classes: the k of a classification, 0 for the numbers themselves."""

    name: str
    binary: bool
    classes: int = 0


class Computed(NamedTuple):
    """One output's values: its form on the wire, and what it is made of."""

    datatype: str
    shape: tuple[int, ...]
    values: Floats | list[str]


def checked_own_tokens(given: Sequence[int] | str, tokens: int) -> tuple[int, ...]:
    """The caller's own tokens, as a list of numbers or as text with commas. 400 unless they are distinct tokens."""
    if isinstance(given, str):
        words = given.split(",")
        if not all(word.strip().isdecimal() and word.isascii() and len(word) < 12 for word in words):
            raise malformed("own_tokens: a text holds numbers with commas, as in '0,3,7'")
        given = [int(word) for word in words]
    own = tuple(given)
    if not own or len(set(own)) != len(own) or min(own) < 0 or max(own) >= tokens:
        raise malformed(f"own_tokens must be distinct tokens of 0 to {tokens - 1}")
    return own


def compute(wanted: Wanted, probabilities: Floats, own: tuple[int, ...] | None) -> Computed:
    """The values of one output. probabilities: (n, tokens); own: the caller's tokens, for own_mass."""
    rows, tokens = probabilities.shape
    if wanted.name == OWN_MASS:
        return Computed("FP32", (rows,), probabilities[:, own].sum(axis=1, dtype=np.float32))
    if not wanted.classes:
        return Computed("FP32", (rows, tokens), probabilities)
    count = min(wanted.classes, tokens)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    best = np.take_along_axis(probabilities, order, axis=1)
    texts = [f"{value:f}:{token}" for value, token in zip(best.flat, order.flat, strict=True)]
    return Computed("BYTES", (rows, count), texts)


def to_bytes(computed: Computed) -> bytes:
    """The output as a binary tensor; each text has its length before it."""
    if isinstance(computed.values, list):
        return b"".join(_LENGTH.pack(len(text)) + text.encode() for text in computed.values)
    return computed.values.astype("<f4", copy=False).tobytes()


def to_list(computed: Computed) -> list[float] | list[str]:
    """The output as JSON data."""
    return computed.values if isinstance(computed.values, list) else computed.values.ravel().tolist()
