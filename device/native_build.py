"""Builds the native core on demand: found by the hash of what it is made of, in the cache folder, whole or not at all.

Needs CMake, a C++17 compiler and an installed executorch, of which only headers and libraries are used. A device
without a compiler is given what was built elsewhere: `HARMONY_NATIVE` names the folder with libharmony.so. No torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from harmony.core.cache import CACHE_MEND, cache_dir
from harmony.core.errors import ConfigError, EngineUnavailable, RunExists
from harmony.core.storage import sealing, storing

SOURCES = Path(__file__).parent / "native"
LIBRARY, PROGRAM = "libharmony.so", "harmony-run"
BUILT = (LIBRARY, PROGRAM)
RUNTIME = (
    "libexecutorch.so",
    "libexecutorch_backend_xnnpack.so",
    "libexecutorch_threadpool.so",
    "libexecutorch_kernels_optimized.so",
)
"""What lies beside them; the last is loaded only by a program with operators outside XNNPACK."""
OVERRIDE = "HARMONY_NATIVE"
_TOOLCHAINS = {"host": None, "aarch64": "aarch64.cmake"}
TARGETS = tuple(_TOOLCHAINS)
_OTHER_ENGINES = "or choose --engine onnxruntime, or executorch"
_TOOLS_MEND = f"install cmake and g++ (Debian: apt install cmake g++), {_OTHER_ENGINES}"
_CROSS_MEND = "install cmake, make and the cross compiler (Debian: apt install g++-aarch64-linux-gnu)"
_WHEEL_MEND = "pip download --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 executorch=={release}"
_WHEEL_PARTS = ("executorch/include/", "executorch/lib/")
_MAX_WHEEL_BYTES = 1 << 30
_BUILD_SECONDS = 600


def executorch_root() -> Path:
    """The folder of the installed executorch, found without importing it. EngineUnavailable if there is none."""
    spec = find_spec("executorch")
    for place in spec.submodule_search_locations or () if spec is not None else ():
        if (Path(place) / "lib" / RUNTIME[0]).is_file():
            return Path(place)
    raise EngineUnavailable(
        "the native engine needs the libraries of executorch, not installed here",
        mend=f"pip install 'harmony-sfl[executorch]', {_OTHER_ENGINES}",
    )


def find_native() -> Path | None:
    """The folder with libharmony.so and harmony-run, if it was built already; `HARMONY_NATIVE` comes first.

    ConfigError if that names a folder without the library.
    """
    given = os.environ.get(OVERRIDE)
    if given:
        folder = Path(given).expanduser()
        if not (folder / LIBRARY).is_file():
            raise ConfigError(f"holds no {LIBRARY}", where=f"{OVERRIDE}={folder}", mend="harmony native build")
        return folder
    with suppress(EngineUnavailable):
        folder = _place(executorch_root())
        return folder if (folder / LIBRARY).is_file() else None
    return None


def ensure_native() -> Path:
    """The folder with libharmony.so and harmony-run, built now if need be: some ten seconds, once.

    EngineUnavailable where executorch, CMake or a compiler is missing, or the compiler fails; StorageError.
    """
    found = find_native()
    if found is not None:
        return found
    root = executorch_root()
    place = _place(root)
    with storing(place, CACHE_MEND):
        place.parent.mkdir(parents=True, exist_ok=True)
    with suppress(RunExists), sealing(place) as draft:  # exists: another process was quicker
        build_native(draft, root)
        for name in RUNTIME:
            (draft / name).symlink_to(root / "lib" / name)
    return place


def build_standalone(out: Path, target: str = "host", executorch: Path | None = None) -> None:
    """Write a folder `out` that needs nothing but itself: harmony-run, libharmony.so, and ExecuTorch's libraries.

    target: one of TARGETS; executorch: a wheel for it, or a folder with what is in one (the installed one by default,
    for the host). The folder appears whole or not at all: RunExists if it is there. ConfigError, EngineUnavailable,
    StorageError.
    """
    if target not in _TOOLCHAINS:
        raise ConfigError(f"'{target}' is no target", where="--target", mend=f"choose one of {', '.join(TARGETS)}")
    if executorch is None and target != "host":
        mend = _WHEEL_MEND.format(release=_release() or "1.5.1")
        raise ConfigError(f"{target} needs an executorch wheel for it", where="--executorch", mend=mend)
    toolchain = _TOOLCHAINS[target]
    options = [f"-DCMAKE_TOOLCHAIN_FILE={SOURCES / toolchain}"] if toolchain else []
    with _opened(executorch) as root, sealing(out) as draft:
        build_native(draft, root, options, _CROSS_MEND if toolchain else _TOOLS_MEND)
        for name in RUNTIME:
            shutil.copyfile(root / "lib" / name, draft / name)


def build_native(out: Path, root: Path, options: Sequence[str] = (), mend: str = _TOOLS_MEND) -> None:
    """Build from the sources beside this file, against the executorch in `root`, into the folder `out`. RUNTIME has to
    lie beside the result.

    options: further arguments for CMake; mend: what to do where it fails. EngineUnavailable, with the compiler's first
    complaint.
    """
    if shutil.which("cmake") is None:
        raise EngineUnavailable("the native engine has to be built, and there is no cmake", mend=mend)
    with tempfile.TemporaryDirectory(prefix="harmony-native-") as folder:
        configure = ["cmake", "-S", str(SOURCES), "-B", folder, f"-DEXECUTORCH_ROOT={root}", *options]
        _run(configure, "CMake cannot prepare the native engine", mend)
        build = ["cmake", "--build", folder, "--parallel", str(_jobs())]
        _run(build, "the native engine does not compile", mend)
        for name in BUILT:
            shutil.copy2(Path(folder) / name, out / name)


@contextmanager
def _opened(executorch: Path | None) -> Iterator[Path]:
    """The folder `executorch` of what was given: the installed one, a folder, or a wheel, unpacked for as long as this
    lasts."""
    if executorch is None:
        yield executorch_root()
        return
    if executorch.is_dir():
        root = executorch / "executorch" if (executorch / "executorch" / "lib").is_dir() else executorch
        if not (root / "lib" / RUNTIME[0]).is_file():
            raise ConfigError(f"holds no lib/{RUNTIME[0]}", where=executorch, mend="give a wheel of executorch")
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="harmony-wheel-") as folder:
        _unpack(executorch, Path(folder))
        yield Path(folder) / "executorch"


def _unpack(wheel: Path, folder: Path) -> None:
    """Headers and libraries of a wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            wanted = [one for one in archive.infolist() if one.filename.startswith(_WHEEL_PARTS) and not one.is_dir()]
            if sum(one.file_size for one in wanted) > _MAX_WHEEL_BYTES or not wanted:
                raise ConfigError("is no wheel of executorch", where=wheel)
            for one in wanted:
                archive.extract(one, folder)  # which leaves no folder above `folder`
    except (OSError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise ConfigError(f"cannot be read as a wheel: {error}", where=wheel, mend="download it again") from None


def _release() -> str | None:
    """Of the installed executorch, without what its build adds."""
    try:
        return version("executorch").split("+")[0]
    except PackageNotFoundError:
        return None


def native_key(root: Path) -> str:
    """Hash of everything that the result depends on: sources, executorch and where it lies, and the machine."""
    parts = [_release() or "unknown", str(root), platform.machine()]
    parts += [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sorted(SOURCES.glob("*.*"))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _place(root: Path) -> Path:
    return cache_dir() / "native" / native_key(root)


def _jobs() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _run(command: list[str], problem: str, mend: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_BUILD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineUnavailable(f"{problem}: {error}", mend=mend) from None
    if done.returncode:
        raise EngineUnavailable(f"{problem}: {_first_complaint(done.stderr + done.stdout)}", mend=mend)


def _first_complaint(output: str) -> str:
    """The line that says what is wrong, and the two after it, since CMake puts its reasons there."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for position, line in enumerate(lines):
        if "error" in line.lower():
            return " ".join(lines[position : position + 3])[:500]
    return lines[-1][:500] if lines else "it does not say why"
