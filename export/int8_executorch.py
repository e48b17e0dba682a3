"""PyTorch to ExecuTorch with weights and activations of 8 bits (PT2E quantisation for XNNPACK)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from harmony.core.errors import EngineUnavailable
from harmony.core.models import FrontEnd
from harmony.core.quiet import quiet, quiet_native
from harmony.export.delegable import make_delegable
from harmony.export.executorch_program import MEND, lower_graphs
from harmony.export.networks import Segment

CONVOLUTION = f"{nn.Conv2d.__module__}.{nn.Conv2d.__qualname__}"


def quantise_executorch(front_end: FrontEnd, calibration: NDArray[np.float32]) -> tuple[bytes, float]:
    """The .pte with 8 bits, and the share of its operators that XNNPACK runs. Errors of `lower_graphs`.

    calibration: (n, C, H, W) scaled images that show the range of activations. Only the network's own convolutions are
    quantised, a scale for each channel of their weights: not the heads, and not the sums that normalisation became.
    """
    network = copy.deepcopy(front_end)
    make_delegable(network)
    with quiet(), torch.no_grad():
        # Slices, since an axis that numpy adds has stride 0, which ExecuTorch does not take.
        images = [torch.from_numpy(calibration[at : at + 1]) for at in range(len(calibration))]
        samples = {"exit1": images, "exit2": [network.lower(image) for image in images]}
        graphs = {name: _quantised(Segment(network, name).eval(), samples[name]) for name in samples}
    return lower_graphs(graphs, type(front_end).__name__)


def _quantised(segment: nn.Module, samples: Any) -> Any:
    prepare, convert, quantizer = _tools()
    graph = torch.export.export(segment, (samples[0],), strict=False).module()
    split_relu6(graph)
    prepared = prepare(graph, quantizer)
    for sample in samples:
        prepared(sample)
    return torch.export.export(convert(prepared), (samples[0],), strict=False)


def split_relu6(graph: torch.fx.GraphModule) -> None:
    """Put a ReLU in front of every ReLU6, in place. It changes no value, and XNNPACK's quantiser knows convolution and
    ReLU as one: otherwise it quantises what a convolution gives before it is cut off at 0, and wastes half of 8 bits.
    """
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and _is_relu6(node):
            with graph.graph.inserting_before(node):
                positive = graph.graph.call_function(torch.ops.aten.relu.default, (node.args[0],))
            positive.meta = dict(node.meta)
            node.replace_input_with(node.args[0], positive)
    graph.graph.lint()
    graph.recompile()


def _is_relu6(node: torch.fx.Node) -> bool:
    if node.target in (torch.ops.aten.relu6.default, torch.ops.aten.relu6_.default):
        return True
    bounded = (torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default)
    return node.target in bounded and tuple(node.args[1:]) == (0.0, 6.0)


def _wanted(node: torch.fx.Node) -> bool:
    """Convolutions of the network itself, the ReLU behind one, and the weights of both, which are no calls."""
    if node.op != "call_function" or node.target is torch.ops.aten.relu.default:
        return True
    return any(_name(kind) == CONVOLUTION for _, kind in node.meta.get("nn_module_stack", {}).values())


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)


def _tools() -> tuple[Any, Any, Any]:
    try:
        with quiet_native():
            from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack  # noqa: PLC0415
            from torchao.quantization.pt2e import quantize_pt2e  # noqa: PLC0415  (comes with executorch)
    except ImportError:
        raise EngineUnavailable("ExecuTorch is not installed", mend=MEND) from None
    quantizer = xnnpack.XNNPACKQuantizer()
    quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    quantizer.set_filter_function(_wanted)
    return quantize_pt2e.prepare_pt2e, quantize_pt2e.convert_pt2e, quantizer
