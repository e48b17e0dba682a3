"""PyTorch to ExecuTorch: one .pte with the methods exit1 and exit2, each a single XNNPACK delegate."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from harmony.core.errors import EngineError, EngineUnavailable
from harmony.core.models import FrontEnd
from harmony.core.quiet import quiet, quiet_native
from harmony.export.delegable import make_delegable
from harmony.export.networks import Segment, parameters
from harmony.export.template import Span, Template, make_template

ROLE = "program"
MEND = "pip install 'harmony-sfl[executorch]'"


def front_end_to_executorch(front_end: FrontEnd, image: Tensor) -> tuple[bytes, float]:
    """The .pte for one image (1, C, H, W), and the share of operators that XNNPACK runs. Errors of `lower_graphs`."""
    network = copy.deepcopy(front_end)
    make_delegable(network)
    with quiet(), torch.no_grad():
        inputs = {"exit1": image, "exit2": network.lower(image)}
        graphs = {
            name: torch.export.export(Segment(network, name).eval(), (sample,), strict=False)
            for name, sample in inputs.items()
        }
    return lower_graphs(graphs, type(front_end).__name__)


def lower_graphs(graphs: dict[str, torch.export.ExportedProgram], where: str) -> tuple[bytes, float]:
    """The .pte with a method for each exported graph, and the share of its operators that XNNPACK runs.

    EngineError unless XNNPACK takes the whole of all graphs.
    An operator left out runs on portable kernels, hundreds of times slower, so a partial delegate is no success.
    """
    exir, partitioner = _exir()
    with quiet(), torch.no_grad():
        # The checker re-verifies the dialect after each of ~30 passes, a third of the time; parity is checked anyway.
        config = exir.EdgeCompileConfig(_check_ir_validity=False)
        edge = exir.to_edge_transform_and_lower(graphs, partitioner=[partitioner()], compile_config=config)
        delegated = min(_delegated(edge.exported_program(name).graph_module) for name in graphs)
        if delegated < 1:
            raise EngineError(f"XNNPACK takes only {delegated:.0%} of the operators", where=where)
        return bytes(edge.to_executorch().buffer), delegated


def executorch_template(numbered: FrontEnd, image: Tensor) -> tuple[Template | None, float]:
    """The template of a numbered front end, and the delegated share.

    Constants are word-aligned all over a .pte; some are referred to by their hash.
    """
    program, delegated = front_end_to_executorch(numbered, image)
    shared = _shared_constants(program)
    keyed = [Span(ROLE, program.find(value), len(value)) for value in shared.values() if program.count(value) == 1]
    return make_template({ROLE: program}, [Span(ROLE, 0, len(program))], parameters(numbered), keyed), delegated


def _shared_constants(program: bytes) -> dict[str, bytes]:
    """The constants that a .pte's delegates share, by the SHA-256 under which they ask for them."""
    from executorch.exir._serialize._program import deserialize_pte_binary  # noqa: PLC0415

    named = deserialize_pte_binary(program).named_data
    if named is None:
        return {}
    return {key: bytes(named.buffers[entry.buffer_index]) for key, entry in named.pte_data.items()}


def _exir() -> tuple[Any, Any]:
    try:
        with quiet_native():
            from executorch import exir  # noqa: PLC0415
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # noqa: PLC0415
    except ImportError:
        raise EngineUnavailable("ExecuTorch is not installed", mend=MEND) from None
    return exir, XnnpackPartitioner


def _delegated(graph_module: torch.fx.GraphModule) -> float:
    """Share of operators inside delegates, over one method's graph."""
    outside = inside = 0
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and "executorch_call_delegate" in str(node.target):
            lowered = getattr(graph_module, node.args[0].name)
            inside += _operators(lowered.original_module.graph_module)
        elif node.op == "call_function" and "getitem" not in str(node.target):
            outside += 1
    return inside / max(1, inside + outside)


def _operators(graph_module: torch.fx.GraphModule) -> int:
    return sum(node.op == "call_function" for node in graph_module.graph.nodes)
