"""A front end in ONNX Runtime: one thread, no spinning, buffers bound once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from harmony.core.bundle import DeviceManifest
from harmony.core.errors import ArtifactCorrupt, ContractMismatch, EngineError
from harmony.core.onnx_graph import require_plain
from harmony.device.engine import ExitOut

Floats = NDArray[np.float32]
Shape = tuple[int, ...]


class OnnxEngine:
    """Both exits. exit1 writes `hidden` where exit2 reads it, so nothing is copied between them.

    image: (1, C, H, W), the buffer that exit1 reads; what was written there is given as `exit1(engine.image)`.
    """

    def __init__(self, exit1: bytes, exit2: bytes, manifest: DeviceManifest, bundle: Path) -> None:
        files = {role: bundle / name for role, name in manifest.engines["onnxruntime"].items()}
        image, own, classes = manifest.image, len(manifest.classes.own), len(manifest.classes.names)
        heads: dict[str, Shape] = {"logits": (1, own), "gate": (1, classes)} if manifest.gate else {"logits": (1, own)}
        self._first = _Segment(exit1, files["exit1"])
        self._second = _Segment(exit2, files["exit2"])
        hidden = self._first.shape_of("hidden")
        self._first.require(
            {"image": (1, image.channels, image.height, image.width)},
            {"hidden": hidden} | {f"{name}1": shape for name, shape in heads.items()},
        )
        self._second.require(
            {"hidden": hidden},
            {"feature": (1, *manifest.feature.shape)} | {f"{name}2": shape for name, shape in heads.items()},
        )
        self.image = np.zeros((1, image.channels, image.height, image.width), np.float32)
        self._first.bind(self.image)
        self._second.bind(self._first.outputs["hidden"])
        self._outputs1 = self._results(self._first, "hidden", "1")
        self._outputs2 = self._results(self._second, "feature", "2")

    def exit1(self, image: Floats) -> ExitOut:
        """See Engine."""
        self._first.run(image)
        return self._outputs1

    def exit2(self, hidden: Floats) -> ExitOut:
        """See Engine."""
        self._second.run(hidden)
        return self._outputs2

    @staticmethod
    def _results(segment: _Segment, carried: str, number: str) -> ExitOut:
        outputs = segment.outputs
        return outputs[carried], outputs[f"logits{number}"], outputs.get(f"gate{number}")


class _Segment:
    """A session with its input and outputs bound to arrays."""

    outputs: dict[str, Floats]

    def __init__(self, program: bytes, where: Path) -> None:
        self._where = where
        self._session = open_session(program, where)

    def shape_of(self, output: str) -> Shape:
        """The shape of an output, as the graph says; ContractMismatch if it has none of that name."""
        shapes = {port.name: tuple(port.shape) for port in self._session.get_outputs()}
        if output not in shapes or not all(isinstance(side, int) and side > 0 for side in shapes[output]):
            raise ContractMismatch(f"the graph gives no '{output}' of a fixed shape", where=self._where)
        return shapes[output]

    def require(self, inputs: dict[str, Shape], outputs: dict[str, Shape]) -> None:
        """ContractMismatch unless the graph has exactly these ports, all float32."""
        for expected, ports in ((inputs, self._session.get_inputs()), (outputs, self._session.get_outputs())):
            found = {port.name: tuple(port.shape) for port in ports if port.type == "tensor(float)"}
            if found != expected or len(ports) != len(expected):
                raise ContractMismatch(
                    f"the graph has {_ports(ports)}, the manifest needs {expected}", where=self._where,
                    mend="export the bundle again",
                )  # fmt: skip

    def bind(self, source: Floats) -> None:
        """Read from `source`, and write to new arrays, from now on."""
        binding = self._session.io_binding()
        binding.bind_input(self._session.get_inputs()[0].name, "cpu", 0, np.float32, source.shape, source.ctypes.data)
        self.outputs = {port.name: np.zeros(port.shape, np.float32) for port in self._session.get_outputs()}
        for name, array in self.outputs.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        self._source, self._binding = source, binding

    def run(self, value: Floats) -> None:
        """Fill `outputs` from an input of the bound shape."""
        if value is not self._source:
            np.copyto(self._source, value)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # the runtime's own exceptions share no base class
            raise EngineError(f"ONNX Runtime failed: {str(error)[:300]}", where=self._where) from None


def open_session(program: bytes, where: Path) -> Any:
    """A session on one thread that takes little memory.

    ArtifactCorrupt if the graph cannot be loaded, or must not be: what reaches beyond itself is refused before the
    runtime sees it.
    """
    require_plain(program, where)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = False  # an arena never gives back its first, largest request
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise ArtifactCorrupt(f"cannot be loaded by ONNX Runtime: {str(error)[:300]}", where=where) from None


def _ports(ports: list[Any]) -> dict[str, str]:
    return {port.name: f"{port.type}{port.shape}" for port in ports}
