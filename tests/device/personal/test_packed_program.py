"""New heads in an ExecuTorch program: in the place of the old ones, or not at all."""

from __future__ import annotations

import hashlib

import numpy as np

from harmony.device.personal.packed_program import replaced

OLD, NEW = np.arange(6, dtype=np.float32), np.arange(6, dtype=np.float32)[::-1].copy()


def _key(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> bytes:
    return hashlib.sha256(values.tobytes()).hexdigest().encode()


def test_weights_and_their_key_change_and_nothing_else() -> None:
    program = b"begin" + _key(OLD) + b"middle" + OLD.tobytes() + _key(OLD) + b"end"
    assert replaced(program, [(OLD, NEW)]) == b"begin" + _key(NEW) + b"middle" + NEW.tobytes() + _key(NEW) + b"end"


def test_what_is_not_there_once_is_not_changed() -> None:
    for program in (b"nothing", OLD.tobytes() * 2):
        assert replaced(program, [(OLD, NEW)]) is None
    assert replaced(OLD.tobytes(), [(OLD, NEW[:5])]) is None
