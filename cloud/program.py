"""One back end in ONNX Runtime: feature (n, C, H, W) float32 → probabilities (n, tokens) float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from harmony.core.bundle import CloudManifest, Tolerance
from harmony.core.errors import ArtifactCorrupt, ContractMismatch, ParityFailed

Floats = NDArray[np.float32]
INPUT, OUTPUT = "feature", "probabilities"
_FLOAT = "tensor(float)"


class Runs(Protocol):
    """A back end that can be run, in whichever runtime. platform: as the protocol names that."""

    @property
    def platform(self) -> str:
        """As the protocol names the runtime."""

    def run(self, feature: Floats) -> Floats:
        """feature: (n, C, H, W), C-contiguous. Returns (n, tokens)."""


class Program:
    """A loaded graph whose shapes are those of the manifest. `run` is called by one thread at a time."""

    platform = "onnxruntime_onnx"

    def __init__(self, program: bytes, manifest: CloudManifest, where: Path) -> None:
        self._session = _session(program, where)
        self._outputs = [OUTPUT]
        _check_port(self._session.get_inputs(), INPUT, manifest.feature.shape, where)
        _check_port(self._session.get_outputs(), OUTPUT, (manifest.tokens,), where)

    def run(self, feature: Floats) -> Floats:
        """feature: (n, C, H, W), C-contiguous. Returns (n, tokens)."""
        probabilities: Floats = self._session.run(self._outputs, {INPUT: feature})[0]
        return probabilities


def prove(program: Runs, vectors: dict[str, Floats], tolerance: Tolerance, where: Path) -> None:
    """Run the bundle's test vectors, all at once and one by one. ParityFailed if an answer is another."""
    if set(vectors) != {INPUT, OUTPUT} or len(vectors[INPUT]) != len(vectors[OUTPUT]) or not len(vectors[INPUT]):
        raise ArtifactCorrupt(f"needs {INPUT} and {OUTPUT} of the same length", where=where)
    feature, expected = vectors[INPUT], vectors[OUTPUT]
    together = program.run(feature)
    alone = np.concatenate([program.run(feature[row : row + 1]) for row in range(len(feature))])
    for found in (together, alone):
        _require_close(found, expected, tolerance, where)


def _session(program: bytes, where: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads take the core that the event loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises many types for a graph that it cannot load
        raise ArtifactCorrupt(f"cannot be loaded by ONNX Runtime: {str(error)[:200]}", where=where) from None


def _check_port(ports: list[Any], name: str, shape: tuple[int, ...], where: Path) -> None:
    """ContractMismatch unless there is one port of that name, float32, whose first axis alone is free."""
    found = [f"{port.name} {port.type}{port.shape}" for port in ports]
    fits = len(ports) == 1 and ports[0].name == name and ports[0].type == _FLOAT
    if not fits or isinstance(ports[0].shape[0], int) or tuple(ports[0].shape[1:]) != shape:
        raise ContractMismatch(
            f"the graph has {', '.join(found)}, the manifest needs {name} {_FLOAT}{['n', *shape]}",
            where=where,
            mend="export the bundle again",
        )


def _require_close(found: Floats, expected: Floats, tolerance: Tolerance, where: Path) -> None:
    if found.shape != expected.shape:
        raise ParityFailed(f"the test vectors gave {found.shape}, not {expected.shape}", where=where)
    excess = np.abs(found - expected) - (tolerance.absolute + tolerance.relative * np.abs(expected))
    if not (excess <= 0).all():  # written so that NaN fails
        worst = float(np.abs(found - expected).max())
        raise ParityFailed(
            f"the test vectors differ from the reference by up to {worst:.3g}",
            where=where,
            mend="export the bundle again on this machine",
        )
