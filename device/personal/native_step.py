"""A head's training step in ExecuTorch, through the native core (`device/native/step.h`), by ctypes. No torch."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from harmony.core.errors import EngineUnavailable
from harmony.core.training import INPUTS
from harmony.device.native_build import LIBRARY, ensure_native
from harmony.device.native_engine import CoreError, load_library
from harmony.device.personal.steps import Corrected, Floats, Form


class _Tensor(ctypes.Structure):
    _fields_ = (("data", POINTER(c_float)), ("count", c_size_t))


class NativeStep:
    """See Step. EngineUnavailable where the native core is not there and cannot be built."""

    def __init__(self, program: bytes, form: Form, where: Path) -> None:
        self._library, self._handle, self._error = _library(), c_void_p(), CoreError()
        self._form, self._rate = form, Corrected()
        inputs, outputs = (_counts(shapes) for shapes in (form.inputs, form.outputs))
        path = str(where).encode(errors="replace")
        self._call(
            "harmony_step_open", c_char_p(program), c_size_t(len(program)), inputs, c_size_t(len(inputs)), outputs,
            c_size_t(len(outputs)), c_char_p(path), byref(self._handle),
        )  # fmt: skip
        self._outputs = {name: np.zeros(shape, np.float32) for name, shape in form.outputs.items()}
        self._state = [np.zeros(form.weights, np.float32) for _ in range(3)]

    def start(self, weights: Floats) -> None:
        """See Step."""
        self._rate = Corrected()
        self._state = [weights.copy(), np.zeros_like(weights), np.zeros_like(weights)]

    def run(self, rate: float, target: Floats, mask: Floats, batch: Floats) -> float:
        """See Step."""
        given = dict(zip(INPUTS, (*self._state, self._rate(rate), target, mask, batch), strict=True))
        arrays = [np.ascontiguousarray(value, np.float32) for value in given.values()]
        self._call("harmony_step_run", self._handle, _tensors(arrays), _tensors(list(self._outputs.values())))
        loss, _, *state = self._outputs.values()
        for mine, value in zip(self._state, state, strict=True):
            mine[:] = value
        return float(loss[0])

    def weights(self) -> Floats:
        """See Step."""
        return self._state[0].copy()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.harmony_step_close(self._handle)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments, byref(self._error))
        if status:
            raise self._error.named(status)


def _library() -> ctypes.CDLL:
    place = ensure_native() / LIBRARY
    library = load_library(place)
    if not hasattr(library, "harmony_step_open"):
        raise EngineUnavailable("knows no training steps", where=place, mend="build it again: harmony native build")
    for name in ("harmony_step_open", "harmony_step_run"):
        getattr(library, name).restype = c_int32
    library.harmony_step_close.argtypes, library.harmony_step_close.restype = (c_void_p,), None
    return library


def _counts(shapes: dict[str, tuple[int, ...]]) -> Any:
    counts = [int(np.prod(shape)) for shape in shapes.values()]
    return (c_size_t * len(counts))(*counts)


def _tensors(arrays: list[Floats]) -> Any:
    pointers = [_Tensor(array.ctypes.data_as(POINTER(c_float)), array.size) for array in arrays]
    return (_Tensor * len(arrays))(*pointers)
