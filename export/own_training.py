"""What the heads of a user's own module learn with: found in its ONNX files, since nobody knows what is in the module.

A device may put another head in the place of one that is an ordinary linear layer: its exit's logits come straight out
of it, and nothing else reads its weights. What is before it, whatever that is, stays as it was exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from harmony.core.errors import ConfigError
from harmony.core.training import Head, StepEngine, Training
from harmony.export.training import Programs
from harmony.export.training_heads import HEAD_FILES, head_step

if TYPE_CHECKING:
    import onnx

_NUMBERS = {"exit1": "1", "exit2": "2"}
_PLAIN = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
"""A Gemm with these attributes is a linear layer whose matrix lies as PyTorch keeps it, (rows, width)."""
_BY_DEFAULT = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


class Linear(NamedTuple):
    """A linear layer in an ONNX graph, by the names of its tensors; embedding: what it reads; rows, width: its size."""

    embedding: str
    weight: str
    bias: str
    rows: int
    width: int


def own_training(programs: Mapping[str, bytes], classes: int, engines: Sequence[StepEngine], where: str) -> Programs:
    """What both heads learn with. programs: the ONNX files by role; classes: all there are; where: the module.

    ConfigError, naming the exit, for logits that are not those of a linear layer.
    """
    import onnx  # noqa: PLC0415  (an extra)

    graphs = {name: onnx.load_from_string(programs[name]).graph for name in _NUMBERS}
    heads = {name: _head(graph, name, where) for name, graph in graphs.items()}
    gates = {name: _gate(graph, name, heads[name], classes) for name, graph in graphs.items()}
    width = max(one.width for one in heads.values())
    training = Training(
        head={engine: HEAD_FILES[engine] for engine in engines},
        exit1=_named(heads["exit1"], gates["exit1"]),
        exit2=_named(heads["exit2"], gates["exit2"]),
        embedding=width,
    )
    return Programs({HEAD_FILES[engine]: head_step(classes, width, engine) for engine in engines}, training)


def _head(graph: onnx.GraphProto, exit_: str, where: str) -> Linear:
    found = _linear(graph, f"logits{_NUMBERS[exit_]}")
    if found is None:
        raise ConfigError(
            f"{exit_} does not end in a linear layer of its own with a bias, so no device can put another in its place",
            where=where, mend="use --trainable none, or let it end in nn.Linear",
        )  # fmt: skip
    return found


def _gate(graph: onnx.GraphProto, exit_: str, head: Linear, classes: int) -> Linear | None:
    """The gate, if a head can begin with its rows: a linear layer over what the head reads. Otherwise it stays closed
    to the device, and new classes begin at zero."""
    found = _linear(graph, f"gate{_NUMBERS[exit_]}")
    fits = found is not None and (found.embedding, found.rows, found.width) == (head.embedding, classes, head.width)
    return found if fits else None


def _linear(graph: onnx.GraphProto, output: str) -> Linear | None:
    """The layer that gives an output of the graph; None if that is not a linear layer by itself."""
    nodes = [node for node in graph.node if output in node.output]
    if len(nodes) != 1 or nodes[0].op_type != "Gemm" or len(nodes[0].input) != 3:
        return None
    given = {one.name: one.f if one.name in ("alpha", "beta") else one.i for one in nodes[0].attribute}
    embedding, weight, bias = nodes[0].input
    shapes = {one.name: tuple(one.dims) for one in graph.initializer if one.HasField("raw_data")}
    shape = shapes.get(weight, ())
    alone = all(_readers(graph, name) == 1 for name in (weight, bias))
    if _BY_DEFAULT | given != _PLAIN or not alone or len(shape) != 2 or shapes.get(bias) != shape[:1]:
        return None
    return Linear(embedding, weight, bias, *shape)


def _readers(graph: onnx.GraphProto, name: str) -> int:
    """How often a tensor is read, by nodes or as an output."""
    outputs: int = sum(one.name == name for one in graph.output)
    return outputs + sum(list(node.input).count(name) for node in graph.node)


def _named(head: Linear, gate: Linear | None) -> Head:
    if gate is None:
        return Head(weight=head.weight, bias=head.bias)
    return Head(weight=head.weight, bias=head.bias, gate_weight=gate.weight, gate_bias=gate.bias)
