"""New heads in an ExecuTorch program, byte for byte in the place of the old ones. No torch, and no ExecuTorch.

XNNPACK is given a linear layer's weights as they are, so the old ones stand in the program exactly once. It knows them
by their SHA-256, which changes along. Whatever is not found so is not changed: then there is no program to use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from harmony.device.personal.steps import Floats


def replaced(program: bytes, changes: Iterable[tuple[Floats, Floats]]) -> bytes | None:
    """The program with other weights. changes: (old, new). None unless each old one stands there once, and each new one
    has its size: a head of other classes is a head of another size only if their number differs."""
    for old, new in changes:
        before, after = (one.astype("<f4").tobytes() for one in (old, new))
        if len(before) != len(after) or program.count(before) != 1:
            return None
        program = program.replace(before, after).replace(_key(before), _key(after))
    return program


def _key(weights: bytes) -> bytes:
    return hashlib.sha256(weights).hexdigest().encode()
