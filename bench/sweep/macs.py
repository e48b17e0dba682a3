"""Multiply-accumulates of an ONNX graph: what it has to compute, whoever computes it."""

from __future__ import annotations

import math

import onnx
from onnx import shape_inference


def macs(program: bytes) -> int:
    """Of convolutions and matrix products; everything else is left out, as usual. A graph with fixed shapes."""
    graph = shape_inference.infer_shapes(onnx.load_from_string(program)).graph
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    for port in (*graph.input, *graph.output, *graph.value_info):
        shapes[port.name] = tuple(side.dim_value for side in port.type.tensor_type.shape.dim)
    return sum(_of(node, shapes) for node in graph.node)


def _of(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type in {"Conv", "QLinearConv"}:
        weight = shapes.get(node.input[1 if node.op_type == "Conv" else 3], ())
        return math.prod(shapes.get(node.output[0], ())) * math.prod(weight[1:])
    if node.op_type in {"Gemm", "MatMul"}:
        left = shapes.get(node.input[0], ())
        transposed = any(one.name == "transA" and one.i for one in node.attribute)
        inner = left[0 if transposed else -1] if left else 0
        return math.prod(shapes.get(node.output[0], ())) * inner
    return 0
