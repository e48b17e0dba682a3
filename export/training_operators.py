"""The operators of a training step, each in ONNX's standard set: one row of the table at the end for each.

A rule gets the writer, the traced node and its arguments (tensors as `Known`), and returns the name of what it wrote,
or names. Raises Unknown for a variant that it does not cover.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.fx import Node

from harmony.export.onnx_writer import OnnxWriter

Rule = Callable[..., Any]
aten = torch.ops.aten


class Unknown(Exception):
    """A variant of an operator that has no rule; becomes an EngineError, which names the operator."""


class Known(NamedTuple):
    """A value that was written before: its name, or names, and its shape."""

    name: Any
    shape: tuple[int, ...]


def shape_of(node: Node) -> tuple[int, ...]:
    """Of what a node gives; empty for several tensors."""
    value = node.meta.get("val")
    return tuple(int(side) for side in value.shape) if isinstance(value, torch.Tensor) else ()


def _same(_: OnnxWriter, __: Node, x: Known, *___: Any) -> Any:
    return x.name


def _elementwise(kind: str) -> Rule:
    def rule(write: OnnxWriter, node: Node, *arguments: Known | float) -> str:
        if node.kwargs.get("alpha", 1) != 1:
            raise Unknown("scaled")
        return write(kind, *(one.name if isinstance(one, Known) else write.number(one) for one in arguments))

    return rule


def _reduce(kind: str) -> Rule:
    def rule(write: OnnxWriter, _: Node, x: Known, axes: Sequence[int] = (), keep: bool = False) -> str:
        chosen = [write.ints(axes)] if axes else []
        return write(kind, x.name, *chosen, keepdims=int(keep))

    return rule


def _to_shape(kind: str) -> Rule:
    def rule(write: OnnxWriter, node: Node, x: Known, *_: Any) -> str:
        return write(kind, x.name, write.ints(shape_of(node)))

    return rule


def _ones(write: OnnxWriter, node: Node, *_: Any) -> str:
    return write("Expand", write.number(1), write.ints(shape_of(node)))


def _scalar(write: OnnxWriter, _: Node, value: float) -> str:
    return write.number(value)


def _transpose(write: OnnxWriter, _: Node, x: Known, one: int, other: int) -> str:
    order = list(range(len(x.shape)))
    order[one], order[other] = order[other], order[one]
    return write("Transpose", x.name, perm=order)


def _permute(write: OnnxWriter, _: Node, x: Known, order: Sequence[int]) -> str:
    return write("Transpose", x.name, perm=list(order))


def _split(write: OnnxWriter, _: Node, x: Known, sizes: Sequence[int]) -> tuple[str, ...]:
    if len(sizes) == 1:
        return (x.name,)
    return write.several("Split", x.name, write.ints(sizes), outputs=len(sizes), axis=0)


def _concat(write: OnnxWriter, _: Node, parts: Sequence[Known], axis: int = 0) -> str:
    return write("Concat", *(one.name for one in parts), axis=axis)


def _gemm(write: OnnxWriter, _: Node, bias: Known, x: Known, weight: Known) -> str:
    return write("Gemm", x.name, weight.name, bias.name)


def _softmax(kind: str) -> Rule:
    def rule(write: OnnxWriter, _: Node, x: Known, axis: int, __: bool) -> str:
        return write(kind, x.name, axis=axis)

    return rule


def _group_norm(write: OnnxWriter, _: Node, *arguments: Any) -> tuple[str, str, str]:
    """GroupNorm (Wu & He 2018, eq. 1), with mean and 1/deviation (n, groups), which the way back takes up again."""
    x, weight, bias, n, channels, area, groups, epsilon = arguments
    each, last = channels // groups, write.ints((2,))
    grouped = write("Reshape", x.name, write.ints((n, groups, each * area)))
    mean = write("ReduceMean", grouped, last, keepdims=1)
    centred = write("Sub", grouped, mean)
    variance = write("ReduceMean", write("Mul", centred, centred), last, keepdims=1)
    inverse = write("Reciprocal", write("Sqrt", write("Add", variance, write.number(epsilon))))
    scale = write("Reshape", weight.name, write.ints((1, groups, each)))
    factor = write("Reshape", write("Mul", inverse, scale), write.ints((n, channels, 1)))
    planes = write("Mul", write("Reshape", centred, write.ints((n, channels, area))), factor)
    moved = write("Add", planes, write("Reshape", bias.name, write.ints((1, channels, 1))))
    flat = write.ints((n, groups))
    return write("Reshape", moved, write.ints(x.shape)), write("Reshape", mean, flat), write("Reshape", inverse, flat)


class _Convolution(NamedTuple):
    """What forward and backward have in common."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, stride: Any, padding: Any, dilation: Any, transposed: bool, _: Any, groups: int) -> _Convolution:
        if transposed or any(one != 1 for one in dilation):
            raise Unknown("transposed or dilated")
        return cls(tuple(stride), tuple(padding), groups)

    @property
    def attributes(self) -> dict[str, Any]:
        return {"strides": self.stride, "pads": self.padding * 2, "group": self.groups}


def _convolution(write: OnnxWriter, _: Node, x: Known, weight: Known, bias: Known | None, *form: Any) -> str:
    names = [one.name for one in (x, weight, bias) if one is not None]
    return write("Conv", *names, **_Convolution.of(*form).attributes)


def _convolution_backward(write: OnnxWriter, _: Node, *arguments: Any) -> tuple[str | None, ...]:
    """Gradients by input, weight and bias, those that are wanted."""
    gradient, x, weight, _, *form, wanted = arguments
    shape = _Convolution.of(*form)
    return (
        _by_input(write, gradient, x, weight, shape) if wanted[0] else None,
        _by_weight(write, gradient, x, weight, shape) if wanted[1] else None,
        write("ReduceSum", gradient.name, write.ints((0, 2, 3)), keepdims=0) if wanted[2] else None,
    )


def _by_input(write: OnnxWriter, gradient: Known, x: Known, weight: Known, form: _Convolution) -> str:
    sides = zip(x.shape[2:], gradient.shape[2:], weight.shape[2:], form.stride, form.padding, strict=True)
    rest = [side - ((out - 1) * stride + kernel - 2 * pad) for side, out, kernel, stride, pad in sides]
    return write("ConvTranspose", gradient.name, weight.name, output_padding=rest, **form.attributes)


def _by_weight(write: OnnxWriter, gradient: Known, x: Known, weight: Known, form: _Convolution) -> str:
    taps = _taps(write, x, weight.shape[2:], gradient.shape[2:], form)
    if form.groups == 1:
        return _dense(write, taps, gradient, weight)
    if weight.shape[:2] != (form.groups, 1):
        raise Unknown("grouped, but not depthwise")
    return _depthwise(write, taps, gradient, weight)


def _taps(write: OnnxWriter, x: Known, kernel: Sequence[int], out: Sequence[int], form: _Convolution) -> list[str]:
    """What each place of the kernel saw, (n, channels, *out) each."""
    if math.prod(kernel) == 1 and form.stride == (1, 1) and form.padding == (0, 0):
        return [x.name]
    padded = x.name
    if any(form.padding):
        padded = write("Pad", x.name, write.ints((0, 0, *form.padding) * 2), write.number(0))
    axes, steps = write.ints((2, 3)), write.ints(form.stride)
    reach = [(side - 1) * stride + 1 for side, stride in zip(out, form.stride, strict=True)]
    return [
        write("Slice", padded, write.ints((row, column)), write.ints((row + reach[0], column + reach[1])), axes, steps)
        for row, column in np.ndindex(*kernel)
    ]


def _dense(write: OnnxWriter, taps: list[str], gradient: Known, weight: Known) -> str:
    """One product of matrices over all places of the kernel: far quicker than a convolution by a huge kernel."""
    outputs, inputs, *kernel = weight.shape
    n, area = gradient.shape[0], math.prod(gradient.shape[2:])
    seen = write("Concat", *taps, axis=1) if len(taps) > 1 else taps[0]
    columns = write("Reshape", seen, write.ints((n, len(taps) * inputs, area)))
    rows = write("Reshape", gradient.name, write.ints((n, outputs, area)))
    each = write("MatMul", rows, write("Transpose", columns, perm=[0, 2, 1]))
    summed = write("ReduceSum", each, write.ints((0,)), keepdims=0)
    placed = write("Reshape", summed, write.ints((outputs, *kernel, inputs)))
    return write("Transpose", placed, perm=[0, 3, 1, 2])


def _depthwise(write: OnnxWriter, taps: list[str], gradient: Known, weight: Known) -> str:
    """Channels never meet: a sum for each channel and place of the kernel."""
    outputs, _, *kernel = weight.shape
    axes = write.ints((0, 2, 3))
    sums = [write("ReduceSum", write("Mul", tap, gradient.name), axes, keepdims=1) for tap in taps]
    placed = write("Reshape", write("Concat", *sums, axis=0), write.ints((*kernel, outputs, 1)))
    return write("Transpose", placed, perm=[2, 3, 0, 1])


RULES: dict[Any, Rule] = {
    aten.alias.default: _same,
    aten.clone.default: _same,
    aten.view.default: _to_shape("Reshape"),
    aten._unsafe_view.default: _to_shape("Reshape"),
    aten.unsqueeze.default: _to_shape("Reshape"),
    aten.expand.default: _to_shape("Expand"),
    aten.ones_like.default: _ones,
    aten.scalar_tensor.default: _scalar,
    aten.transpose.int: _transpose,
    aten.permute.default: _permute,
    aten.split_with_sizes.default: _split,
    aten.cat.default: _concat,
    aten.add.Tensor: _elementwise("Add"),
    aten.sub.Tensor: _elementwise("Sub"),
    aten.mul.Tensor: _elementwise("Mul"),
    aten.div.Tensor: _elementwise("Div"),
    aten.div.Scalar: _elementwise("Div"),
    aten.neg.default: _elementwise("Neg"),
    aten.exp.default: _elementwise("Exp"),
    aten.sqrt.default: _elementwise("Sqrt"),
    aten.relu.default: _elementwise("Relu"),
    aten.le.Scalar: _elementwise("LessOrEqual"),
    aten.where.self: _elementwise("Where"),
    aten.sum.dim_IntList: _reduce("ReduceSum"),
    aten.sum.default: _reduce("ReduceSum"),
    aten.mean.dim: _reduce("ReduceMean"),
    aten.mm.default: _elementwise("MatMul"),
    aten.bmm.default: _elementwise("MatMul"),
    aten.addmm.default: _gemm,
    aten._softmax.default: _softmax("Softmax"),
    aten._log_softmax.default: _softmax("LogSoftmax"),
    aten.native_group_norm.default: _group_norm,
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
}
