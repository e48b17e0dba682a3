"""Each engine against eager PyTorch, on the same images, before anything is sealed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from harmony.core.bundle import Tolerance
from harmony.core.errors import EngineUnavailable, ParityFailed
from harmony.core.models import FrontEnd
from harmony.core.quiet import quiet_native
from harmony.export.networks import Answers

Floats = NDArray[np.float32]
Vectors = dict[str, Floats]


def front_end_vectors(network: FrontEnd, images: Floats) -> Vectors:
    """Eager PyTorch's outputs for images (n, C, H, W), one at a time as the device runs them, with the images."""
    rows: list[Vectors] = []
    with torch.no_grad():
        for image in map(torch.from_numpy, np.split(images, len(images))):
            out = network(image)
            row = {"image": image, "hidden": network.lower(image), **out._asdict()}
            rows.append({name: value.numpy() for name, value in row.items() if value is not None})
    return _stack(rows)


def back_end_vectors(network: Answers, features: Floats) -> Vectors:
    """Eager PyTorch's probabilities for features (n, *FeatureSpec.shape), with the features."""
    with torch.no_grad():
        return {"feature": features, "probabilities": network(torch.from_numpy(features)).numpy()}


def run_onnx(programs: Mapping[str, bytes], images: Floats) -> Vectors:
    """ONNX Runtime's outputs of exit1, then exit2, image by image."""
    exit1, exit2 = onnx_session(programs["exit1"]), onnx_session(programs["exit2"])
    rows: list[Vectors] = []
    for image in np.split(images, len(images)):
        row = _run(exit1, {"image": image})
        rows.append(row | _run(exit2, {"hidden": row["hidden"]}))
    return _stack(rows)


def run_back_end(program: bytes, features: Floats) -> tuple[Vectors, Vectors]:
    """ONNX Runtime's outputs: all features in one batch, and one by one."""
    session = onnx_session(program)
    single = [_run(session, {"feature": feature}) for feature in np.split(features, len(features))]
    return _run(session, {"feature": features}), _stack(single)


def run_executorch(programs: Mapping[str, bytes], images: Floats, names: Mapping[str, tuple[str, ...]]) -> Vectors:
    """ExecuTorch's outputs, image by image. names: the outputs of each method, in order."""
    program = programs["program"]  # the runtime reads from these bytes for as long as it lives
    with quiet_native():
        module = executorch_runtime()._load_for_executorch_from_buffer(program)
    rows: list[Vectors] = []
    for image in np.split(images, len(images)):
        row: Vectors = {}
        carried = torch.from_numpy(image.copy())  # contiguous NCHW: any other layout is silently wrong
        for method in ("exit1", "exit2"):
            out = module.run_method(method, (carried,))
            row |= {name: value.numpy().copy() for name, value in zip(names[method], out, strict=True)}
            carried = out[0].clone()
        rows.append(row)
    return _stack(rows)


def compare(expected: Vectors, found: Vectors, tolerance: Tolerance, *, who: str, engine: str) -> float:
    """Largest absolute difference. ParityFailed, naming the output, if one is beyond the tolerance or not a number."""
    worst = 0.0
    for name, value in found.items():
        reference = expected[name]
        error = np.abs(value - reference)
        largest = float(error.max())
        if value.shape != reference.shape or not np.all(
            error <= tolerance.absolute + tolerance.relative * np.abs(reference)
        ):
            raise ParityFailed(
                f"{engine} differs from PyTorch by {largest:.3g}", where=who, field=name,
                mend="please report this; --format leaves an engine out",
            )  # fmt: skip
        worst = max(worst, largest)
    return worst


def onnx_session(program: bytes) -> onnxruntime.InferenceSession:
    """A session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, feed: Vectors) -> Vectors:
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def executorch_runtime() -> Any:
    """ExecuTorch's Python bindings, on one thread. EngineUnavailable."""
    try:
        from executorch.extension.pybindings import portable_lib  # noqa: PLC0415
    except ImportError:
        raise EngineUnavailable("ExecuTorch is not installed", mend="pip install 'harmony-sfl[executorch]'") from None
    if portable_lib._threadpool_get_thread_count() != 1:
        portable_lib._unsafe_reset_threadpool(1)  # only before the first program is loaded; later it crashes
    return portable_lib


def _stack(rows: list[Vectors]) -> Vectors:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
