"""A front end in ExecuTorch through the native core (`device/native`), by ctypes: the whole loop in one call.

No torch, and other threads run meanwhile. `Device` asks `decide`; checks use `exit1` and `exit2`.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import DeviceManifest
from harmony.core.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    ArtifactTooNew,
    ArtifactUntrusted,
    ConfigError,
    ContractMismatch,
    EngineError,
    EngineUnavailable,
    HarmonyError,
    InvalidInput,
)
from harmony.device.decision import Decision
from harmony.device.engine import ExitOut
from harmony.device.native_build import LIBRARY, ensure_native
from harmony.device.prepare import describe

Floats = NDArray[np.float32]
ABI = 2
_ERRORS: dict[int, type[HarmonyError]] = {
    1: ArtifactMissing,
    2: ArtifactCorrupt,
    3: ArtifactTooNew,
    4: ContractMismatch,
    5: EngineUnavailable,
    6: EngineError,
    7: InvalidInput,
    8: ConfigError,
    12: ArtifactUntrusted,
}
"""By harmony_status."""
_REBUILD = "build it again: harmony native build"
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "harmony_open_memory": (c_char_p, c_size_t, c_char_p, c_size_t, c_char_p, c_void_p),
    "harmony_describe": (c_void_p, c_void_p),
    "harmony_answer": (c_void_p, c_void_p, c_size_t, c_void_p),
    "harmony_feature": (c_void_p, c_void_p),
    "harmony_exit1": (c_void_p, c_void_p, c_size_t, c_void_p),
    "harmony_exit2": (c_void_p, c_void_p, c_size_t, c_void_p),
}
"""Arguments of the functions that are used, without the error, which is the last of each."""


class CoreError(ctypes.Structure):
    """What the core says of a failure."""

    _fields_ = (("status", c_int32), ("message", c_char * 512))

    def named(self, status: int) -> HarmonyError:
        """As the tree of errors has it."""
        return _ERRORS.get(status, EngineError)(self.message.decode(errors="replace"))


class _Info(ctypes.Structure):
    _fields_ = (
        *((f"image_{name}", c_int32) for name in ("height", "width", "channels", "is_float")),
        ("image_bytes", c_size_t),
        *((f"feature_{name}", c_int32) for name in ("channels", "height", "width")),
        ("hidden_rank", c_int32),
        ("hidden_shape", c_int32 * 8),
        *((name, c_int32) for name in ("own_classes", "classes", "gate")),
    )


class _Decision(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("exit", "would_offload", "label", "scores")),
        ("score", c_float * 2),
        *((name, c_double) for name in ("probability", "threshold")),
        ("prepare_ns", c_int64),
        ("engine_ns", c_int64 * 2),
        ("total_ns", c_int64),
    )


class _Outputs(ctypes.Structure):
    _fields_ = tuple((name, POINTER(c_float)) for name in ("carried", "logits", "gate"))


class NativeEngine:
    """Both exits and the loop over them. Not thread-safe; several of them may run at once."""

    image = None

    def __init__(self, program: bytes, manifest: DeviceManifest, bundle: Path) -> None:
        self._library = load_library(ensure_native() / LIBRARY)
        self._device, self._error, self._decision = c_void_p(), CoreError(), _Decision()
        text = manifest.model_dump_json().encode()
        where = str(bundle).encode(errors="replace")
        self._call("harmony_open_memory", text, len(text), program, len(program), where, byref(self._device))
        # Room is made once the core has found that the program takes such images, and not for what a manifest claims.
        self._spec = manifest.image
        self._image = np.empty((self._spec.height, self._spec.width, self._spec.channels), self._spec.dtype)
        self._features = np.empty(manifest.feature.shape, np.float32)
        own, classes = len(manifest.classes.own), len(manifest.classes.names) if manifest.gate else 0
        self._shapes1 = (self._hidden_shape(), (1, own), (1, classes))
        self._shapes2 = ((1, *manifest.feature.shape), (1, own), (1, classes))
        # All that a call needs, made once: for a front end of a tenth of a millisecond the conversions would count.
        self._answer = self._library.harmony_answer
        self._arguments = (
            self._device, self._image.ctypes.data, self._image.nbytes, byref(self._decision), byref(self._error),
        )  # fmt: skip

    def __del__(self) -> None:
        if getattr(self, "_device", None):
            self._library.harmony_close(self._device)

    def decide(self, image: NDArray[Any]) -> Decision:
        """See Decider."""
        if image.shape != self._image.shape or image.dtype != self._image.dtype:
            raise InvalidInput(f"has {describe(image)}, the model takes {self._spec}", where="image")
        np.copyto(self._image, image)
        self._check(self._answer(*self._arguments))
        found = self._decision
        score1, score2 = found.score
        if found.exit == 1:
            return Decision("exit1", found.label, found.probability, (score1,), found.threshold, None)
        feature = self._feature() if found.would_offload else None
        return Decision("exit2", found.label, found.probability, (score1, score2), found.threshold, feature)

    def exit1(self, image: Floats) -> ExitOut:
        """See Engine."""
        return self._segment("harmony_exit1", image, self._shapes1)

    def exit2(self, hidden: Floats) -> ExitOut:
        """See Engine."""
        return self._segment("harmony_exit2", hidden, self._shapes2)

    def _segment(self, name: str, value: Floats, shapes: tuple[tuple[int, ...], ...]) -> ExitOut:
        values, outputs = np.ascontiguousarray(value, np.float32), _Outputs()
        self._call(name, self._device, values.ctypes.data, values.size, byref(outputs))
        carried, logits, gate = shapes
        return (
            _copied(outputs.carried, carried),
            _copied(outputs.logits, logits),
            _copied(outputs.gate, gate) if outputs.gate else None,
        )

    def _feature(self) -> Floats:
        pointer = POINTER(c_float)()
        self._call("harmony_feature", self._device, byref(pointer))
        ctypes.memmove(self._features.ctypes.data, pointer, self._features.nbytes)
        return self._features

    def _hidden_shape(self) -> tuple[int, ...]:
        info = _Info()
        self._call("harmony_describe", self._device, byref(info))
        return tuple(info.hidden_shape[: info.hidden_rank])

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(getattr(self._library, name)(*arguments, byref(self._error)))

    def _check(self, status: int) -> None:
        if status:
            raise self._error.named(status)


def _copied(pointer: Any, shape: tuple[int, ...]) -> Floats:
    """A view of the core's memory could outlive it."""
    out = np.empty(shape, np.float32)
    ctypes.memmove(out.ctypes.data, pointer, out.nbytes)
    return out


@lru_cache
def load_library(path: Path) -> ctypes.CDLL:
    """libharmony, its functions declared. EngineUnavailable if it cannot be loaded, or is of another version."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineUnavailable(f"cannot be loaded: {error}", where=path, mend=_REBUILD) from None
    library.harmony_abi.restype = c_uint32
    if library.harmony_abi() != ABI:
        raise EngineUnavailable(f"is of version {library.harmony_abi()}, not {ABI}", where=path, mend=_REBUILD)
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = (*arguments, c_void_p), c_int32
    library.harmony_close.argtypes, library.harmony_close.restype = (c_void_p,), None
    return library
