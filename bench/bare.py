"""Bare ONNX Runtime over a bundle's programs, what the device path is held against: no checks, no gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from harmony.bench.programs import read_programs
from harmony.core.bundle import DeviceManifest

Floats = NDArray[np.float32]


class BareFrontEnd:
    """Both segments of an opened device bundle, a folder or a .tar, that has ONNX files."""

    def __init__(self, folder: Path, manifest: DeviceManifest) -> None:
        roles, programs = manifest.engines["onnxruntime"], read_programs(folder, manifest, "onnxruntime")
        self._exit1, self._exit2 = (one_thread_session(programs[roles[role]]) for role in ("exit1", "exit2"))

    def exit1(self, image: Floats) -> Floats:
        """(1, C, H, W) prepared image → hidden; the logits are computed and dropped."""
        hidden: Floats = self._exit1.run(None, {"image": image})[0]
        return hidden

    def exit2(self, image: Floats) -> tuple[Floats, Floats]:
        """(1, C, H, W) prepared image → feature (1, *FeatureSpec), logits2 (1, own), through both segments."""
        feature, logits, *_ = self._exit2.run(None, {"hidden": self.exit1(image)})
        return feature, logits


def one_thread_session(program: bytes) -> Any:
    """An onnxruntime.InferenceSession of these bytes as a device runs it: on the caller's thread alone."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(program, options, providers=["CPUExecutionProvider"])
