"""The engines' libraries for Arm, out of PyPI's wheels: by name, release and SHA-256, through pip, and only these."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from harmony.core.errors import EngineUnavailable

_SECONDS = 900
_MOST_BYTES = 1 << 30


class Wheel(NamedTuple):
    """A wheel for CPython 3.11 on 64-bit Arm; parts: what is unpacked of it. The libraries need no Python."""

    requirement: str
    sha256: str
    parts: tuple[str, ...]


EXECUTORCH = Wheel(
    "executorch==1.5.1",
    "8ee02348a3ea80ddf770822911ebf78da616b73afce0fbaaa79f23311c88c66a",
    ("executorch/include/", "executorch/lib/"),
)
ONNXRUNTIME = Wheel(
    "onnxruntime==1.31.1",
    "da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3",
    ("onnxruntime/capi/libonnxruntime.so.",),
)
WHEELS = (EXECUTORCH, ONNXRUNTIME)


def fetch(wheel: Wheel, folder: Path) -> None:
    """Unpack a wheel's parts into `folder`. EngineUnavailable if pip cannot get it, or gets something else."""
    with tempfile.TemporaryDirectory(prefix="harmony-wheel-") as work:
        pinned = Path(work) / "requirements.txt"
        pinned.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        _download(pinned, wheel)
        for path in Path(work).glob("*.whl"):
            _unpack(path, wheel.parts, folder)


def _download(pinned: Path, wheel: Wheel) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--platform=manylinux_2_28_aarch64", "--python-version=3.11"]
    command += ["--implementation=cp", "--abi=cp311", "--require-hashes", f"--requirement={pinned}"]
    try:
        done = subprocess.run(
            [*command, f"--dest={pinned.parent}"], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineUnavailable(f"pip cannot download it: {error}", where=wheel.requirement) from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        problem = f"pip cannot download it: {lines[-1] if lines else 'it does not say why'}"
        raise EngineUnavailable(problem, where=wheel.requirement, mend="check the network; python -m ensurepip")


def _unpack(path: Path, parts: tuple[str, ...], folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        wanted = [one for one in archive.infolist() if one.filename.startswith(parts) and not one.is_dir()]
        if sum(one.file_size for one in wanted) > _MOST_BYTES or not wanted:
            raise EngineUnavailable("is not the wheel that was expected", where=path.name)
        for one in wanted:
            archive.extract(one, folder)
