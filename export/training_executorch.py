"""A traced step to ExecuTorch: one .pte whose method `forward` is the step, on portable kernels.

The weights are inputs, so nothing in the program is mutable and nothing is packed away: XNNPACK, which packs weights
once and would train on old ones, is given none of it. For heads alone; a whole front end takes 13 times as long as in
ONNX Runtime on these kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from harmony.core.errors import EngineUnavailable
from harmony.core.quiet import quiet, quiet_native
from harmony.core.training import OUTPUTS
from harmony.export.parity import executorch_runtime
from harmony.export.training_step import Step

METHOD = "forward"


def step_to_executorch(step: Step) -> bytes:
    """The .pte of a step."""
    try:
        with quiet_native():
            from executorch import exir  # noqa: PLC0415
    except ImportError:
        raise EngineUnavailable("ExecuTorch is not installed", mend="pip install 'harmony-sfl[executorch]'") from None
    with quiet(), torch.no_grad():
        exported = torch.export.export(step.graph, step.inputs, strict=False)
        edge = exir.to_edge(exported, compile_config=exir.EdgeCompileConfig(_check_ir_validity=False))
        return bytes(edge.to_executorch().buffer)


def run_step(program: bytes, inputs: Sequence[torch.Tensor]) -> Mapping[str, NDArray[np.float32]]:
    """What ExecuTorch makes of one step, by the names of `OUTPUTS`."""
    with quiet_native():
        module = executorch_runtime()._load_for_executorch_from_buffer(program)
    found = module.run_method(METHOD, tuple(one.contiguous() for one in inputs))
    return {name: value.numpy().copy() for name, value in zip(OUTPUTS, found, strict=True)}
