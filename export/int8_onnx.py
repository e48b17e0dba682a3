"""ONNX files with weights and activations of 8 bits, as pairs of QuantizeLinear and DequantizeLinear.

Convolutions alone are quantised, a scale for each channel of their weights. The heads stay as they are: they are tiny,
and a device may put others in their place. What is left (normalisation, sums) needs more than 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from harmony.core.errors import EngineUnavailable
from harmony.core.quiet import quiet
from harmony.export.parity import run_onnx

Floats = NDArray[np.float32]
QUANTISED = ["Conv"]


def quantise_onnx(programs: Mapping[str, bytes], calibration: Floats) -> dict[str, bytes]:
    """Both segments with 8 bits, by role. calibration: (n, C, H, W) scaled images that show the range of activations.

    Exit 2 is calibrated on what exit 1 hands on before it is quantised. EngineUnavailable without the onnx package.
    """
    hidden = run_onnx(programs, calibration)["hidden"]
    inputs = {"exit1": ("image", calibration), "exit2": ("hidden", hidden)}
    return {role: _quantise(program, *inputs[role]) for role, program in programs.items()}


class _Samples:
    """What the quantiser asks for its samples: one at a time, None after the last."""

    def __init__(self, name: str, samples: Floats) -> None:
        self._samples = iter([{name: sample[None]} for sample in samples])

    def get_next(self) -> dict[str, Floats] | None:
        return next(self._samples, None)


def _quantise(program: bytes, name: str, samples: Floats) -> bytes:
    try:
        import onnx  # noqa: PLC0415
        from onnxruntime import quantization  # noqa: PLC0415  (asks for onnx)
    except ImportError:
        raise EngineUnavailable("the package onnx is missing", mend="pip install 'harmony-sfl[export]'") from None
    with TemporaryDirectory(prefix="harmony-int8-") as folder, quiet():
        out = Path(folder) / "quantised.onnx"
        quantization.quantize_static(
            onnx.load_from_string(program),
            out,
            _Samples(name, samples),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            per_channel=True,
            # Activations without sign, weights with: the kernels that processors without VNNI have, too.
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return out.read_bytes()
