"""A front end in ExecuTorch, through its Python bindings: the one module of this room that imports torch.

Loaded only if this engine is asked for. The runtime aborts the process on damaged programs, so it is given bytes that
were hashed, and a program that says it is one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import DeviceManifest
from harmony.core.errors import ArtifactCorrupt, ContractMismatch, EngineError, EngineUnavailable
from harmony.core.quiet import quiet_native
from harmony.device.engine import ExitOut

try:
    with quiet_native():
        import torch
        from executorch.extension.pybindings import portable_lib
except ImportError:
    raise EngineUnavailable("ExecuTorch is not installed", mend="pip install 'harmony-sfl[executorch]'") from None

Floats = NDArray[np.float32]
_MARK = slice(4, 8)  # the flatbuffer's file identifier


class ExecutorchEngine:
    """Both exits, methods of one program."""

    image = None

    def __init__(self, program: bytes, manifest: DeviceManifest, bundle: Path) -> None:
        self._where = bundle / manifest.engines["executorch"]["program"]
        if program[_MARK] != b"ET12":
            raise ArtifactCorrupt("is not an ExecuTorch program", where=self._where)
        self._program = program  # the runtime reads from these bytes for as long as the module lives
        self._outputs = 3 if manifest.gate else 2
        self._module = _load(program, self._where)
        self._check(manifest)

    def exit1(self, image: Floats) -> ExitOut:
        """See Engine."""
        return self._run("exit1", image)

    def exit2(self, hidden: Floats) -> ExitOut:
        """See Engine."""
        return self._run("exit2", hidden)

    def _run(self, method: str, value: Floats) -> ExitOut:
        # Contiguous NCHW: XNNPACK programs read any other layout as if it were that, silently.
        given = torch.from_numpy(np.ascontiguousarray(value, np.float32))
        try:
            out = self._module.run_method(method, (given,))
        except RuntimeError as error:
            raise EngineError(f"ExecuTorch failed in '{method}': {str(error)[:300]}", where=self._where) from None
        arrays = [one.numpy() for one in out]
        return arrays[0], arrays[1], arrays[2] if self._outputs == 3 else None

    def _check(self, manifest: DeviceManifest) -> None:
        """ContractMismatch unless the methods take and give what the manifest says."""
        image, own, classes = manifest.image, len(manifest.classes.own), len(manifest.classes.names)
        heads = [(1, own)] + ([(1, classes)] if manifest.gate else [])
        expected = {
            "exit1": ((1, image.channels, image.height, image.width), None, *heads),
            "exit2": (None, (1, *manifest.feature.shape), *heads),
        }
        ports = {method: _shapes(self._module, method, self._where) for method in expected}
        if ports["exit1"][1:2] != ports["exit2"][:1]:
            problem = f"exit 1 gives {ports['exit1'][1:2]}, exit 2 takes {ports['exit2'][:1]}"
            raise ContractMismatch(problem, where=self._where, mend="export the bundle again")
        for method, shapes in expected.items():
            found = ports[method]
            fits = len(found) == len(shapes)
            if not fits or any(want not in (None, have) for want, have in zip(shapes, found, strict=True)):
                raise ContractMismatch(
                    f"'{method}' takes and gives {found}, the manifest needs {shapes}", where=self._where,
                    mend="export the bundle again",
                )  # fmt: skip


def _load(program: bytes, where: Path) -> Any:
    try:
        with quiet_native():
            if portable_lib._threadpool_get_thread_count() != 1:
                portable_lib._unsafe_reset_threadpool(1)  # only before the first program is loaded; later it crashes
            return portable_lib._load_for_executorch_from_buffer(program)
    except RuntimeError as error:
        raise ArtifactCorrupt(f"cannot be loaded by ExecuTorch: {str(error)[:300]}", where=where) from None


def _shapes(module: Any, method: str, where: Path) -> list[tuple[int, ...]]:
    """Shape of the method's input, then of its outputs."""
    try:
        meta = module.method_meta(method)
    except RuntimeError:
        raise ContractMismatch(f"has no method '{method}'", where=where) from None
    outputs = [meta.output_tensor_meta(index) for index in range(meta.num_outputs())]
    return [tuple(one.sizes()) for one in (meta.input_tensor_meta(0), *outputs)]
