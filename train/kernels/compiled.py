"""norm.c, compiled for this very processor on first use and kept in the cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from harmony.core.cache import CACHE_MEND, cache_dir
from harmony.core.errors import RunError
from harmony.core.storage import storing

SOURCE = Path(__file__).parent / "norm.c"
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-std=gnu11", "-shared", "-fPIC")
SECONDS = 120
MEND = 'install a C compiler (Debian: apt install gcc), or set precision to "float32"'
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
Kernel = Callable[..., None]


class Compiled(NamedTuple):
    """The library's functions, by the type of the images; their arguments are those in norm.c."""

    forward: dict[torch.dtype, Kernel]
    backward: dict[torch.dtype, Kernel]


@cache
def compiled() -> Compiled:
    """The functions of norm.c. RunError if there is no compiler or it fails; StorageError."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RunError("bfloat16 needs a kernel compiled for this processor, and there is no C compiler", mend=MEND)
    source = SOURCE.read_bytes()
    # A cache may lie on a disk that several machines share.
    made_for = f"{platform.machine()} {_processor()} {compiler} {' '.join(FLAGS)}".encode()
    target = cache_dir() / "kernels" / f"norm-{hashlib.sha256(source + made_for).hexdigest()[:16]}.so"
    if not target.exists():
        _compile(compiler, target)
    library = ctypes.CDLL(str(target))
    names = {torch.float32: "float", torch.bfloat16: "bfloat16"}
    forward = (*[_POINTER] * 7, *[_SIZE] * 3, ctypes.c_float, ctypes.c_int)
    backward = (*[_POINTER] * 10, *[_SIZE] * 3, ctypes.c_int)
    return Compiled(
        {kind: _function(library, f"norm_forward_{name}", forward) for kind, name in names.items()},
        {kind: _function(library, f"norm_backward_{name}", backward) for kind, name in names.items()},
    )


def _function(library: ctypes.CDLL, name: str, arguments: tuple[type, ...]) -> Kernel:
    function = getattr(library, name)
    function.argtypes, function.restype = arguments, None
    return function  # type: ignore[no-any-return]


def _compile(compiler: str, target: Path) -> None:
    with storing(target, mend=CACHE_MEND):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            try:
                command = [compiler, *FLAGS, str(SOURCE), "-o", str(made), "-lm"]
                done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise RunError(f"{compiler} cannot be run: {error}", mend=MEND) from None
            if done.returncode:
                complaint = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
                raise RunError(f"the kernel does not compile: {complaint}", mend=MEND)
            made.replace(target)  # whole or not at all, whoever else compiles it


def _processor() -> str:
    """What tells processors apart, as far as Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
