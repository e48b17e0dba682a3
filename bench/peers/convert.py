"""From a bundle's files to what a peer reads, by the peer's own converter."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harmony.bench.peers.environments import Environment
from harmony.core.errors import EngineUnavailable

_EXITS = ("exit1", "exit2")
_SECONDS = 600


def to_ncnn(found: Environment, folder: Path) -> None:
    """ONNX to ncnn, with weights of 32 bits. EngineUnavailable, with the converter's last word, if it fails."""
    pnnx = found.packages / "pnnx" / "pnnx"
    with suppress(OSError):  # where nobody may change that, whether it can be run is seen at once
        pnnx.chmod(0o755)  # the wheel does not say that it can be
    for name in _EXITS:
        _run([str(pnnx), f"{name}.onnx", "fp16=0"], folder, [f"{name}.ncnn.param", f"{name}.ncnn.bin"])


def to_litert(found: Environment, folder: Path) -> None:
    """PyTorch to LiteRT: there is no way from ONNX that does not bring TensorFlow. EngineUnavailable, as above."""
    script = Path(__file__).with_name("to_litert.py")
    _run([str(found.python), "-P", str(script), str(folder)], folder, [f"{name}.tflite" for name in _EXITS])


def _run(command: Sequence[str], folder: Path, makes: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineUnavailable(f"its converter cannot be run: {error}") from None
    if done.returncode or not all((folder / name).is_file() for name in makes):
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise EngineUnavailable(f"its converter ended with code {done.returncode}: {said[-1][:200]}")
