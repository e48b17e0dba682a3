"""What runs a front end: the interface, and the one place that chooses an engine. No torch.

    onnxruntime   the default; every bundle made with --format onnx
    native        ExecuTorch in the native core, built on demand; the whole early-exit loop in one call
    executorch    ExecuTorch through its Python bindings, which import torch: where nothing can be built
    auto          the first of native (if it is built already: it never compiles), onnxruntime, executorch that can run

An engine that was asked for by name is never replaced by another: what is missing is said, with what to do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import DeviceManifest, EngineName
from harmony.core.errors import ConfigError, EngineUnavailable
from harmony.core.sealed import read_sealed

Floats = NDArray[np.float32]
ExitOut = tuple[Floats, Floats, Floats | None]
EngineChoice = Literal["onnxruntime", "native", "executorch", "auto"]
_PROGRAMS: dict[EngineChoice, EngineName] = {
    "onnxruntime": "onnxruntime",
    "native": "executorch",
    "executorch": "executorch",
}
"""Whose files of a bundle an engine runs."""


class Engine(Protocol):
    """A loaded front end. Arrays that it returns may be its own buffers: valid until the same method's next call.

    Not thread-safe.
    """

    @property
    def image(self) -> Floats | None:
        """The buffer (1, C, H, W) that exit1 reads: what is prepared there need not be copied. None: there is none."""

    def exit1(self, image: Floats) -> ExitOut:
        """image (1, C, H, W), scaled → hidden, logits (1, own), gate (1, classes) or None."""

    def exit2(self, hidden: Floats) -> ExitOut:
        """hidden, as exit1 gave it → feature (1, *FeatureSpec.shape), logits (1, own), gate (1, classes) or None."""


def open_engine(bundle: Path, manifest: DeviceManifest, name: EngineChoice = "onnxruntime") -> Engine:
    """Load the front end of an opened bundle. The files are hashed again, as bytes that nobody can change any more,
    since a native parser that is given other bytes may answer wrongly or end the process.

    EngineUnavailable if the bundle has no files for it or the runtime is missing; ArtifactCorrupt, ContractMismatch.
    """
    if name not in get_args(EngineChoice):
        raise ConfigError(f"'{name}' is no engine", mend=f"choose one of {', '.join(get_args(EngineChoice))}")
    if name == "auto":
        return _open_first(bundle, manifest)
    if _PROGRAMS[name] not in manifest.engines:
        raise EngineUnavailable(
            f"has no files for {_PROGRAMS[name]}, only for {', '.join(manifest.engines)}", where=bundle,
            mend="export it again with that format, or choose another --engine",
        )  # fmt: skip
    files = {role: read_sealed(bundle, manifest, file) for role, file in manifest.engines[_PROGRAMS[name]].items()}
    if name == "native":
        from harmony.device.native_engine import NativeEngine  # noqa: PLC0415  (may compile)

        return NativeEngine(files["program"], manifest, bundle)
    if name == "executorch":
        from harmony.device.executorch_engine import ExecutorchEngine  # noqa: PLC0415  (imports torch)

        return ExecutorchEngine(files["program"], manifest, bundle)
    from harmony.device.onnx_engine import OnnxEngine  # noqa: PLC0415

    return OnnxEngine(files["exit1"], files["exit2"], manifest, bundle)


def _open_first(bundle: Path, manifest: DeviceManifest) -> Engine:
    from harmony.device.native_build import find_native  # noqa: PLC0415

    order: list[EngineChoice] = ["onnxruntime", "executorch"]
    if find_native() is not None:
        order.insert(0, "native")
    reasons = []
    for name in order:
        try:
            return open_engine(bundle, manifest, name)
        except EngineUnavailable as error:
            reasons.append(f"{name}: {error.problem}")
    raise EngineUnavailable(f"no engine can run here: {'; '.join(reasons)}", where=bundle)
