"""Which bundles a path holds, and what keeps one from being served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from harmony.cloud.models import find_bundles, open_models
from harmony.core.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    ArtifactTooNew,
    ConfigError,
    ContractMismatch,
    HarmonyError,
    ParityFailed,
)
from harmony.core.onnx_graph import require_plain
from harmony.core.sealed import MANIFEST, SEAL, hash_file

if TYPE_CHECKING:
    from tests.cloud.conftest import Build, Bundle, Floats, Graph

GraphType = Callable[..., "Graph"]


def test_a_bundle_a_folder_of_several_and_an_export(
    build_bundle: Build, graph: GraphType, bundle: Bundle, tmp_path: Path
) -> None:
    build_bundle(tmp_path / "export" / "cloud", graph())
    build_bundle(tmp_path / "several" / "b", graph(manifest={"model": "two"}))
    build_bundle(tmp_path / "several" / "a", graph(manifest={"model": "one"}))
    (tmp_path / "several" / "client-000").mkdir()
    (tmp_path / "several" / "client-000" / MANIFEST).write_text('{"format": "harmony-device-bundle"}')
    (tmp_path / "several" / "notes.txt").write_text("not a bundle")
    assert [model.name for model in open_models(bundle.folder)] == ["backend"]
    assert [model.folder.name for model in open_models(tmp_path / "export")] == ["cloud"]
    assert [(model.name, model.version) for model in open_models(tmp_path / "several")] == [("one", "1"), ("two", "1")]


def test_nothing_to_serve(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="no such folder"):
        find_bundles(tmp_path / "absent")
    with pytest.raises(ArtifactMissing, match="no cloud bundle here"):
        find_bundles(tmp_path)


def test_two_models_of_one_name(build_bundle: Build, graph: GraphType, tmp_path: Path) -> None:
    build_bundle(tmp_path / "a", graph())
    build_bundle(tmp_path / "b", graph())
    with pytest.raises(ConfigError, match="is named 'backend', and so is"):
        open_models(tmp_path)


def test_a_device_bundle_is_not_served(tmp_path: Path) -> None:
    text = '{"format": "harmony-device-bundle"}'
    (tmp_path / MANIFEST).write_text(text)
    (tmp_path / SEAL).write_text(f"{hash_file(tmp_path / MANIFEST)}  {MANIFEST}\n")
    with pytest.raises(ArtifactCorrupt, match="harmony-device-bundle"):
        open_models(tmp_path)


@pytest.mark.parametrize("name", ["back_end.onnx", "vectors.safetensors", MANIFEST, SEAL])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.99])
def test_one_changed_byte(bundle: Bundle, tmp_path: Path, name: str, place: float) -> None:
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "copy"))
    data = bytearray((copy / name).read_bytes())
    data[int(place * len(data))] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ArtifactCorrupt, match=name.replace(".", r"\.").replace("sha256", "(sha256|json)")):
        open_models(copy)


@pytest.mark.parametrize("name", ["back_end.onnx", "vectors.safetensors", SEAL])
def test_a_file_is_gone_or_cut_short(bundle: Bundle, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "copy"))
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    with pytest.raises(ArtifactCorrupt):
        open_models(copy)
    (copy / name).unlink()
    with pytest.raises(ArtifactMissing):
        open_models(copy)


def test_a_newer_format(bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "copy"))
    manifest = json.loads((copy / MANIFEST).read_text()) | {"format_version": 2}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    (copy / SEAL).write_text(f"{hash_file(copy / MANIFEST)}  {MANIFEST}\n")
    with pytest.raises(ArtifactTooNew, match="version 2"):
        open_models(copy)


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def external_in_a_subgraph(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.ones((1, 10), np.float32), "hidden_tensor")
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "elsewhere"
    branch = helper.make_graph([], "branch", [], [], [tensor])
    model.graph.node.append(helper.make_node("If", ["condition"], ["x"], then_branch=branch, else_branch=branch))


def custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example.code"


def runtime_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("FusedGemm", ["flat"], ["x"], domain="com.microsoft"))


def operator_in_a_function(model: onnx.ModelProto) -> None:
    inner = helper.make_node("Anything", ["a"], ["b"], domain="com.example")
    opset = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("", "mine", ["a"], ["b"], [inner], opset))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (external, "another file"),
        (external_in_a_subgraph, "another file"),
        (custom_operator, r"com\.example\.code\.Flatten"),
        (runtime_operator, r"com\.microsoft\.FusedGemm"),
        (operator_in_a_function, r"com\.example\.Anything"),
    ],
)
def test_a_graph_that_reaches_beyond_itself(
    build_bundle: Build, graph: GraphType, tmp_path: Path, edit: Callable[[onnx.ModelProto], None], words: str
) -> None:
    build_bundle(tmp_path / "b", graph(edit=edit))
    with pytest.raises(ArtifactCorrupt, match=words) as refused:
        open_models(tmp_path / "b")
    assert "back_end.onnx" in str(refused.value)


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Flattery"


def another_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"


def double_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    model.graph.node.insert(0, helper.make_node("Cast", ["feature"], ["single"], to=TensorProto.FLOAT))
    model.graph.node[1].input[0] = "single"


def two_outputs(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10]))


def other_weights(model: onnx.ModelProto) -> None:
    bias = numpy_helper.to_array(model.graph.initializer[1]) + np.arange(10, dtype=np.float32)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(bias, "bias"))


def nan_weights(model: onnx.ModelProto) -> None:
    bias = numpy_helper.to_array(model.graph.initializer[1]) * np.float32("nan")
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(bias, "bias"))


def wrong_cut(vectors: dict[str, Floats]) -> None:
    vectors["feature"] = vectors["feature"][:, :4]


def no_answers(vectors: dict[str, Floats]) -> None:
    del vectors["probabilities"]


@pytest.mark.parametrize(
    "case",
    [
        ({"edit": unknown_operator}, ArtifactCorrupt, "cannot be loaded"),
        ({"edit": another_input}, ContractMismatch, "image tensor"),
        ({"edit": double_input}, ContractMismatch, "tensor.double"),
        ({"edit": two_outputs}, ContractMismatch, "logits"),
        ({"feature": [4, 8, 4, 4]}, ContractMismatch, "the graph has feature"),
        ({"feature": ["n", 8, 2, 8]}, ContractMismatch, "the graph has feature"),
        ({"feature": ["n", 8, "h", "w"]}, ContractMismatch, "the graph has feature"),
        ({"manifest": {"tokens": 11}}, ContractMismatch, "the graph has probabilities"),
        ({"edit": other_weights}, ParityFailed, "differ from the reference"),
        ({"edit": nan_weights}, ParityFailed, "differ from the reference"),
        ({"vectors": wrong_cut}, ContractMismatch, "the test vectors have"),
        ({"vectors": no_answers}, ArtifactCorrupt, "needs feature and probabilities"),
    ],
)
def test_a_bundle_that_breaks_its_contract(
    build_bundle: Build, graph: GraphType, tmp_path: Path, case: tuple[dict[str, Any], type[HarmonyError], str]
) -> None:
    change, error, words = case
    build_bundle(tmp_path / "b", graph(**change))
    with pytest.raises(error, match=words):
        open_models(tmp_path / "b")


def test_damaged_graphs_are_named_not_followed(bundle: Bundle) -> None:
    """Every cut and a sample of changed bytes: the walk ends, with a verdict or with the named error."""
    path = bundle.folder / "back_end.onnx"
    whole = path.read_bytes()
    require_plain(whole, path)
    for end in range(1, len(whole), 37):
        with pytest.raises(ArtifactCorrupt):
            require_plain(whole[:end], path)
    for place in range(0, len(whole), 11):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        try:
            require_plain(bytes(changed), path)
        except ArtifactCorrupt:
            continue


def test_nested_without_end(tmp_path: Path) -> None:
    """Graph in attribute in node in graph …: refused by depth, not by the interpreter's stack."""
    message = b""
    for number in [6, 5, 1] * 400:
        size, length = len(message), b""
        while size > 0x7F:
            length += bytes([size & 0x7F | 0x80])
            size >>= 7
        message = bytes([number << 3 | 2]) + length + bytes([size]) + message
    size, length = len(message), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    with pytest.raises(ArtifactCorrupt, match="deep"):
        require_plain(bytes([7 << 3 | 2]) + length + bytes([size]) + message, tmp_path)
