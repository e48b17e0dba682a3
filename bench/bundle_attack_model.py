"""A small device bundle out of a few ONNX operators, for those who attack bundles and have none at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from harmony.core.bundle import VECTORS, DeviceManifest, Exit, Fallback, write_vectors
from harmony.core.sealed import seal, sealing
from harmony.core.spec import Architecture, ClassMap, FeatureSpec, ImageSpec

Floats = NDArray[np.float32]
_IMAGE, _HIDDEN, _FEATURE = (1, 1, 8, 8), (1, 4, 8, 8), (1, 4, 4, 4)
_NAMES, _OWN = ("ant", "bee", "cat", "dog", "eel"), (1, 2, 4)


def write_bundle(folder: Path) -> Path:
    """A whole bundle in `folder`, the same for everybody: two convolutions, and heads behind global means."""
    weights = _weights()
    programs = {name: _program(name, weights) for name in ("exit1", "exit2")}
    with sealing(folder) as draft:
        for name, program in programs.items():
            (draft / f"{name}.onnx").write_bytes(program)
        write_vectors(draft / VECTORS, _vectors(programs))
        seal(draft, _manifest(sum(one.size for one in weights.values())))
    return folder


def _weights() -> dict[str, Floats]:
    rng = np.random.default_rng(0)
    shapes = {"conv1": (4, 1, 3, 3), "conv2": (4, 4, 3, 3), "logits": (4, len(_OWN)), "gate": (4, len(_NAMES))}
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def _program(name: str, weights: dict[str, Floats]) -> bytes:
    """exit1: image → hidden, logits1, gate1; exit2: hidden → feature, logits2, gate2."""
    number, stride = name[-1], 1 if name == "exit1" else 2
    source, carried = ("image", "hidden") if name == "exit1" else ("hidden", "feature")
    before, after = (_IMAGE, _HIDDEN) if name == "exit1" else (_HIDDEN, _FEATURE)
    nodes = [
        helper.make_node("Conv", [source, f"conv{number}"], ["c"], pads=[1, 1, 1, 1], strides=[stride, stride]),
        helper.make_node("Relu", ["c"], [carried]),
        helper.make_node("GlobalAveragePool", [carried], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        *(helper.make_node("MatMul", ["flat", head], [f"{head}{number}"]) for head in ("logits", "gate")),
    ]
    outputs = [
        _port(carried, after),
        _port(f"logits{number}", (1, len(_OWN))),
        _port(f"gate{number}", (1, len(_NAMES))),
    ]
    constants = [numpy_helper.from_array(weights[one], one) for one in (f"conv{number}", "logits", "gate")]
    graph = helper.make_graph(nodes, name, [_port(source, before)], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    serialised: bytes = model.SerializeToString()
    return serialised


def _port(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _vectors(programs: dict[str, bytes]) -> dict[str, Floats]:
    """What ONNX Runtime says of two images: whether it is right is not the question here."""
    import onnxruntime  # noqa: PLC0415  (its first use)

    first, second = (onnxruntime.InferenceSession(one, providers=["CPUExecutionProvider"]) for one in programs.values())
    rows: list[dict[str, Floats]] = []
    for image in np.random.default_rng(1).normal(0, 1, (2, *_IMAGE)).astype(np.float32):
        names = ("hidden", "logits1", "gate1"), ("feature", "logits2", "gate2")
        row = {"image": image, **dict(zip(names[0], first.run(names[0], {"image": image}), strict=True))}
        row |= dict(zip(names[1], second.run(names[1], {"hidden": row["hidden"]}), strict=True))
        rows.append(row)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _manifest(parameters: int) -> DeviceManifest:
    exits = (
        Exit(name="exit1", score="own_mass", threshold=1e9),
        Exit(name="exit2", score="own_mass", threshold=0),
    )
    return DeviceManifest(
        harmony_version="0",
        run="made up",
        method="none",
        client=0,
        architecture=Architecture.parse("resnet-w8-d1"),
        dataset="made up",
        image=ImageSpec(height=_IMAGE[2], width=_IMAGE[3], channels=1, mean=(0.5,), std=(0.25,)),
        feature=FeatureSpec(channels=_FEATURE[1], height=_FEATURE[2], width=_FEATURE[3]),
        classes=ClassMap(names=_NAMES, own=_OWN, tokens=(3, 0, 4, 1, 2)),
        exits=exits,
        gate=True,
        fallback=Fallback(),
        engines={"onnxruntime": {"exit1": "exit1.onnx", "exit2": "exit2.onnx"}},
        parameters=parameters,
    )
