"""The heads of a user's own module: found in its ONNX files, refused where no device can replace them, learning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from harmony.core.bundle import VECTORS, open_device_bundle, read_vectors
from harmony.core.data import load
from harmony.core.errors import ConfigError
from harmony.device import verify
from harmony.device.personal import Budget, Plan, Wish, personalize, roll_back
from harmony.export import export_own, own_module
from harmony.export.own_training import own_training

HERE = Path(__file__).parent
CLASSES, OWN, WIDTH = 5, 2, 3
Nodes = Sequence[onnx.NodeProto]


def _gemm(
    number: int, out: str = "logits", weight: str = "w", *, bias: bool = True, **changes: float
) -> onnx.NodeProto:
    inputs = ["x", weight, *(["b" if weight == "w" else "gb"] if bias else [])]
    return helper.make_node("Gemm", inputs, [f"{out}{number}"], **dict[str, Any]({"transB": 1} | changes))


def _program(number: int, nodes: Nodes, width: int = WIDTH) -> bytes:
    shapes = {"w": (OWN, width), "b": (OWN,), "gw": (CLASSES, width), "gb": (CLASSES,), "two": (1, OWN)}
    constants = [numpy_helper.from_array(np.full(shape, 0.5, np.float32), name) for name, shape in shapes.items()]
    names = sorted({name for node in nodes for name in node.output if name[:-1] in ("logits", "gate", "more")})
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, width))
    graph = helper.make_graph(nodes, f"exit{number}", [source], ports, constants)
    content: bytes = helper.make_model(graph).SerializeToString()
    return content


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("MatMul", ["x", "w"], ["logits2"])],
        [_gemm(2, bias=False)],
        [_gemm(2, transB=0)],
        [_gemm(2, alpha=2.0)],
        [_gemm(2), helper.make_node("Identity", ["w"], ["more2"])],
        [_gemm(2, "raw"), helper.make_node("Softmax", ["raw2"], ["logits2"])],
        [helper.make_node("Identity", ["w"], ["v"]), _gemm(2, weight="v")],
    ],
    ids=["no layer", "no bias", "turned", "scaled", "read twice", "more behind it", "computed"],
)
def test_a_head_that_cannot_be_replaced_is_named(nodes: Nodes) -> None:
    programs = {"exit1": _program(1, [_gemm(1)]), "exit2": _program(2, nodes)}
    with pytest.raises(ConfigError, match=r"mine:net: exit2 does not end in a linear layer .*--trainable none"):
        own_training(programs, CLASSES, ["onnxruntime"], "mine:net")


def test_a_head_begins_with_the_gates_rows_where_both_look_at_the_same() -> None:
    beside = [_gemm(1), helper.make_node("Relu", ["x"], ["y"])]
    gate = helper.make_node("Gemm", ["y", "gw", "gb"], ["gate1"], transB=1)
    programs = {
        "exit1": _program(1, [*beside, gate], width=4),
        "exit2": _program(2, [_gemm(2), _gemm(2, "gate", "gw")]),
    }
    found = own_training(programs, CLASSES, ["onnxruntime"], "mine:net")
    assert (found.training.exit1.weight, found.training.exit1.gate_weight) == ("w", None)
    assert (found.training.exit2.gate_weight, found.training.exit2.gate_bias) == ("gw", "gb")
    assert found.training.embedding == 4
    assert found.training.front_end is None
    assert set(found.files) == {"head_step.onnx"} == set(found.training.files.values())


@pytest.mark.parametrize(
    ("trainable", "formats", "words"),
    [
        ("front-end", ("onnx",), r"--trainable: a front end of a user's own cannot learn as a whole \(choose head\)"),
        ("all", ("onnx",), "'all' is nothing to train"),
        ("head", ("pickle",), "'pickle' is no format"),
    ],
)
def test_what_cannot_be_meant(trainable: str, formats: tuple[str, ...], words: str, tmp_path: Path) -> None:
    job = own_module("own_module:small", None, "fashion-mnist-mini", trainable=trainable)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=words):
        export_own(job, tmp_path / "out", formats=formats)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_heads_of_a_module_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exits look at 8 and at 16 numbers, and have no gates."""
    monkeypatch.chdir(HERE)
    monkeypatch.syspath_prepend(str(HERE))
    data, out = load("fashion-mnist-mini"), tmp_path / "out"
    export_own(own_module("own_module:small", None, "fashion-mnist-mini", own="1,4,7"), out, formats=("onnx",))
    bundle = out / "client-000"
    old, before = open_device_bundle(bundle), read_vectors(bundle / VECTORS)
    assert old.training is not None
    assert old.training.embedding == 16
    x = np.concatenate([data.x_train[data.y_train == label][:12] for label in (1, 5, 8, 9)])
    y = np.repeat(range(4), 12)
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y, class_names=["1", "5", "8", "9"])
    with pytest.raises(ConfigError, match=r"whole front end .*--what head: a front end of a user's own"):
        personalize(bundle, str(tmp_path / "mine.npz"), Wish(what="front-end"), Budget())
    outcome = personalize(bundle, str(tmp_path / "mine.npz"), Wish(heads=Plan(60, 3e-2)), Budget())
    new, after = open_device_bundle(bundle), read_vectors(bundle / VECTORS)
    assert outcome.adopted
    assert outcome.before <= 0.25
    assert outcome.after >= 0.5
    assert (new.classes.own, new.parameters - old.parameters) == ((1, 5, 8, 9), 8 + 1 + 16 + 1)
    np.testing.assert_allclose(after["feature"], before["feature"], rtol=1e-4, atol=1e-4)
    assert [check.max_error for check in verify(bundle).engines] == [0]
    roll_back(bundle)
    assert open_device_bundle(bundle) == old
