"""Writes an ONNX graph node by node: standard operators, float32, one self-contained file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPSET, IR = 20, 10


class OnnxWriter:
    """Collects nodes and constants; equal constants are kept once. ImportError where onnx is not installed."""

    def __init__(self) -> None:
        import onnx  # noqa: PLC0415  (an extra)

        self._onnx = onnx
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._initializers: list[Any] = []
        self._constants: dict[tuple[Any, ...], str] = {}

    def input(self, name: str, shape: Sequence[int]) -> str:
        """Add an input of the graph, float32."""
        self._inputs.append(self._port(name, shape))
        return name

    def output(self, name: str, value: str, shape: Sequence[int]) -> None:
        """Make a value an output of the graph, float32, under a name of its own."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name]))
        self._outputs.append(self._port(name, shape))

    def ints(self, values: Sequence[int]) -> str:
        """A constant of int64."""
        return self._constant(np.asarray(values, np.int64))

    def number(self, value: float) -> str:
        """A scalar constant of float32."""
        return self._constant(np.asarray(value, np.float32))

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its one output."""
        return self.several(kind, *inputs, outputs=1, **attributes)[0]

    def several(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Add a node; returns the names of its outputs."""
        names = tuple(f"v{len(self._nodes)}_{index}" for index in range(outputs))
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), list(names), **attributes))
        return names

    def model(self, notes: Mapping[str, str]) -> bytes:
        """The file, with notes in its metadata. Checked by onnx itself."""
        make = self._onnx.helper
        graph = make.make_graph(self._nodes, "step", self._inputs, self._outputs, self._initializers)
        model = make.make_model(graph, opset_imports=[make.make_opsetid("", OPSET)], ir_version=IR)
        for key, value in notes.items():
            model.metadata_props.add(key=key, value=value)
        self._onnx.checker.check_model(model)
        serialised: bytes = model.SerializeToString()
        return serialised

    def _port(self, name: str, shape: Sequence[int]) -> Any:
        return self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT, shape)

    def _constant(self, value: NDArray[Any]) -> str:
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = name = f"c{len(self._constants)}"
            self._initializers.append(self._onnx.numpy_helper.from_array(value, name))
        return self._constants[key]
