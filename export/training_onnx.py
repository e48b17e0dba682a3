"""A traced step to ONNX, operator by operator: ONNX Runtime then trains without knowing it.

PyTorch's own exporter has no backward operators, and takes a minute where this takes a moment. What the table of
`harmony.export.training_operators` does not hold is refused by name, and every graph is held against eager gradients
before it leaves.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from harmony.core.errors import EngineError, EngineUnavailable
from harmony.core.training import INPUTS, OUTPUTS
from harmony.export.onnx_writer import OnnxWriter
from harmony.export.parity import onnx_session
from harmony.export.training_operators import RULES, Known, Unknown, shape_of
from harmony.export.training_step import Step


def step_to_onnx(step: Step, notes: Mapping[str, str] | None = None, *, who: str) -> bytes:
    """The ONNX file of a step, with notes in its metadata. EngineError for an operator that has no rule."""
    try:
        writer = OnnxWriter()
    except ImportError:
        raise EngineUnavailable("the ONNX exporter is missing", mend="pip install 'harmony-sfl[export]'") from None
    found: dict[Node, Any] = {}
    ports = iter(INPUTS)
    for node in step.graph.graph.nodes:
        if node.op == "placeholder":
            found[node] = writer.input(next(ports), shape_of(node))
        elif node.op == "call_function":
            found[node] = _translate(writer, node, found, who)
        elif node.op == "output":
            for name, value in zip(OUTPUTS, node.args[0], strict=True):
                writer.output(name, found[value], shape_of(value))
        else:
            raise EngineError(f"the training step holds a constant of its own, {node.target}", where=who)
    return writer.model(notes or {})


def run_onnx_step(program: bytes, inputs: Sequence[torch.Tensor]) -> Mapping[str, NDArray[np.float32]]:
    """What ONNX Runtime makes of one step, by the names of `OUTPUTS`."""
    feed = {name: one.numpy() for name, one in zip(INPUTS, inputs, strict=True)}
    return dict(zip(OUTPUTS, onnx_session(program).run(list(OUTPUTS), feed), strict=True))


def _translate(writer: OnnxWriter, node: Node, found: Mapping[Node, Any], who: str) -> Any:
    if node.target is operator.getitem:
        source, index = node.args
        return found[source][index]  # type: ignore[index]
    rule = RULES.get(node.target)
    if rule is None:
        raise EngineError(f"there is no ONNX form of {node.target} in a training step", where=who)
    arguments = torch.fx.map_arg(node.args, lambda one: Known(found[one], shape_of(one)))
    try:
        return rule(writer, node, *arguments)
    except Unknown as error:
        raise EngineError(f"there is no ONNX form of {node.target} that is {error}", where=who) from None
