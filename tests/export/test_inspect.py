"""What `inspect` reads from a bundle's files, held against ExecuTorch's and ONNX's own readers."""

from __future__ import annotations

import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harmony.core.errors import ArtifactCorrupt
from harmony.core.inspection import inspect
from harmony.core.pte import _XNNPACK, read_methods
from harmony.core.quiet import quiet, quiet_native
from harmony.export import ExportReport

Exported = tuple[Path, list[ExportReport]]


def plans(program: bytes) -> list[Any]:
    """As ExecuTorch reads them."""
    with quiet_native():
        from executorch.exir._serialize._program import deserialize_pte_binary
    return list(deserialize_pte_binary(program).program.execution_plan)


def test_a_device_bundle(exported: Exported) -> None:
    folder = exported[0] / "client-000"
    found = inspect(folder)
    assert found.files == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert (found.signed, found.trusted) == ((), False)
    programs = {(one.engine, one.name): one for one in found.programs}
    exits = {(engine, name) for engine in ("onnxruntime", "executorch") for name in ("exit1", "exit2")}
    assert set(programs) == exits | {("onnxruntime", "head step"), ("executorch", "forward")}
    for name in ("exit1", "exit2"):
        model = onnx.load(folder / f"{name}.onnx")
        assert programs["onnxruntime", name].operators == Counter(node.op_type for node in model.graph.node)
        assert programs["onnxruntime", name].delegated is None
        program = programs["executorch", name]
        assert program.delegated == 1
        assert program.operators["XNNPACK.Conv2d"] >= programs["onnxruntime", name].operators["Conv"]


def test_a_back_end(exported: Exported) -> None:
    (program,) = inspect(exported[0] / "cloud").programs
    assert program.file == "back_end.onnx"
    assert program.operators["Softmax"] == 1


def test_planned_memory_is_what_executorch_itself_reads(exported: Exported) -> None:
    path = exported[0] / "client-000" / "front_end.pte"
    expected = plans(path.read_bytes())
    found = read_methods(path.read_bytes(), path)
    assert [one.name for one in found] == [plan.name for plan in expected] == ["exit1", "exit2"]
    for one, plan in zip(found, expected, strict=True):
        assert one.planned_bytes == sum(plan.non_const_buffer_sizes[1:]) > 0
        assert list(one.delegates) == [delegate.id for delegate in plan.delegates] == ["XnnpackBackend"]


class Partly(nn.Module):
    """One operator that XNNPACK takes, and two that it does not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(torch.cumsum(x + x, 0), 1)


@pytest.fixture(scope="module")
def partly() -> bytes:
    with quiet_native():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    with quiet(), torch.no_grad():
        graph = torch.export.export(Partly().eval(), (torch.zeros(2, 3),), strict=False)
        config = EdgeCompileConfig(_check_ir_validity=False)
        edge = to_edge_transform_and_lower(graph, partitioner=[XnnpackPartitioner()], compile_config=config)
        return bytes(edge.to_executorch().buffer)


def test_what_no_delegate_runs_is_counted(partly: bytes) -> None:
    (found,) = read_methods(partly, Path("partly.pte"))
    (plan,) = plans(partly)
    calls = [one.instr_args for chain in plan.chains for one in chain.instructions]
    outside = [plan.operators[one.op_index].name for one in calls if type(one).__name__ == "KernelCall"]
    assert outside == ["aten::cumsum"] * 2
    assert sum(type(one).__name__ == "DelegateCall" for one in calls) == 1
    assert found.operators == {"XNNPACK.Add": 1, "aten::cumsum.out": 2}
    assert found.delegated == pytest.approx(1 / 3)


def test_names_of_operators_are_those_of_the_schema() -> None:
    spec = find_spec("executorch")
    assert spec is not None
    assert spec.submodule_search_locations
    schema = (
        Path(spec.submodule_search_locations[0]) / "backends" / "xnnpack" / "serialization" / "schema.fbs"
    ).read_text()
    union = re.search(r"union XNodeUnion \{(.*?)\}", schema, re.DOTALL)
    assert union is not None
    assert tuple(re.findall(r"XNN(\w+)", re.sub(r":\s*\w+", "", union[1]))) == _XNNPACK


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_program_is_named_or_read(partly: bytes, data: st.DataObject) -> None:
    changed = bytearray(partly)
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(8, len(changed) - 1))
        changed[position] = data.draw(st.integers(0, 255))
    try:
        read_methods(bytes(changed[: data.draw(st.integers(0, len(changed)))]), Path("damaged.pte"))
    except ArtifactCorrupt as error:
        assert "damaged.pte" in str(error)


def test_a_program_that_repeats_itself_is_not_followed_for_ever() -> None:
    """Five layers, each a table all of whose fields are one vector, which names the table below 4,096 times."""
    count, below = 4096, 24 + 8 + 4 + 4 * 4096
    program = bytearray((8 + 24).to_bytes(4, "little") + b"ET12")
    for layer in range(5):
        vtable = [22, 8, *[4] * 9, 0]
        program += b"".join(one.to_bytes(2, "little") for one in vtable)
        program += (24).to_bytes(4, "little") + (4).to_bytes(4, "little")
        entries = count if layer < 4 else 0
        program += entries.to_bytes(4, "little")
        program += b"".join((below - 12 - 4 * one).to_bytes(4, "little") for one in range(entries))
    with pytest.raises(ArtifactCorrupt, match=r"again\.pte: .*more than \d+ tables"):
        read_methods(bytes(program), Path("again.pte"))
