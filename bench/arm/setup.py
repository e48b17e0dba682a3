"""Builds the emulated Arm environment, once for a version: what is on PATH is used, the rest comes out of packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from harmony.bench.arm.cores import CORES
from harmony.bench.arm.debian import can_fetch, fetch_packages, libraries_in, wrap
from harmony.bench.arm.environment import (
    BIN,
    CORES_DIR,
    LIB,
    PLUGIN,
    RECORD,
    SOURCES,
    ArmEnvironment,
    arm_folder,
    environment_folder,
)
from harmony.bench.arm.wheels import EXECUTORCH, ONNXRUNTIME, WHEELS, fetch
from harmony.core.cache import CACHE_MEND
from harmony.core.errors import EngineUnavailable, RunExists
from harmony.core.storage import sealing, storing
from harmony.device import native_build

EMULATOR, CC, CXX = "qemu-aarch64", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++"
PACKAGES = {EMULATOR: "qemu-user", CC: "gcc-aarch64-linux-gnu", CXX: "g++-aarch64-linux-gnu"}
"""What may come out of packages without being root: command → Debian package."""
HOST = {"cc": "gcc", "cmake": "cmake", "make": "make"}
"""What has to be there: compiling for this machine itself is its owner's choice of compiler."""
_LIBRARIES = (
    "ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0",
    "libgcc_s.so.1", "libstdc++.so.6",
)  # fmt: skip
_ONNXRUNTIME = "libonnxruntime.so.1"
"""The name by which a program that was linked against it asks for it."""
_SECONDS = 600
_FIRST_WITH_SECOND_INTERFACE = 9
Say = Callable[[str], None]


def setup_arm(say: Say = lambda _: None) -> Path:
    """The environment's folder, built now if need be: some minutes and 100 MB of downloads, once.

    say: is told what happens. EngineUnavailable, naming what is missing and the command that brings it; StorageError.
    """
    folder = environment_folder()
    if folder.is_dir():
        return folder
    _require_host()
    tools = _find_tools(say)
    with storing(folder, CACHE_MEND):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(RunExists), sealing(folder) as draft:  # exists: another process was quicker
        _build(draft, tools, say)
    return folder


def _require_host() -> None:
    missing = [command for command in HOST if shutil.which(command) is None]
    if missing:
        packages = " ".join(sorted({HOST[command] for command in missing}))
        raise EngineUnavailable(f"needs {', '.join(missing)}, not found here", mend=f"as root: apt install {packages}")


def _find_tools(say: Say) -> dict[str, Path]:
    """Emulator and compilers: from PATH, else out of packages, in a folder that outlives the environment."""
    found = {command: shutil.which(command) for command in PACKAGES}
    missing = [command for command, path in found.items() if path is None]
    tools = {command: Path(path) for command, path in found.items() if path is not None}
    if not missing:
        return tools
    packages = [PACKAGES[command] for command in missing]
    if not can_fetch():
        mend = f"on Debian or Ubuntu: apt install {' '.join(packages)}; elsewhere, packages with these commands"
        raise EngineUnavailable(f"needs {', '.join(missing)}, not found here", mend=mend)
    folder = arm_folder() / f"tools-{'-'.join(sorted(packages))}"
    with storing(folder, CACHE_MEND):
        folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        say(f"unpacking {', '.join(packages)}")
        with suppress(RunExists), sealing(folder) as draft:
            fetch_packages(packages, draft)
            for command in missing:
                wrap(command, draft, sysroot=command != EMULATOR)
    return tools | {command: folder / "bin" / command for command in missing}


def _build(folder: Path, tools: Mapping[str, Path], say: Say) -> None:
    (folder / BIN).mkdir()
    with tempfile.TemporaryDirectory(prefix="harmony-arm-") as work:
        for wheel in WHEELS:
            say(f"fetching {wheel.requirement} for Arm")
            fetch(wheel, Path(work))
        say("compiling")
        _build_native(folder / BIN, Path(work) / "executorch", tools)
        _build_counters(folder / BIN, Path(work), tools)
    _build_plugin(folder, tools[EMULATOR])
    _copy_libraries(folder / LIB, tools[CC])
    for core in CORES.values():
        root = folder / CORES_DIR / core.name
        (root / "proc").mkdir(parents=True)
        (root / "lib").symlink_to(Path("..") / ".." / LIB)
        (root / "proc" / "cpuinfo").write_text(core.cpuinfo, encoding="ascii")
    (folder / RECORD).write_bytes(_record(tools).model_dump_json(indent=2).encode() + b"\n")


def _build_native(out: Path, executorch: Path, tools: Mapping[str, Path]) -> None:
    target = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={tools[CXX]}"]
    native_build.build_native(out, executorch, target, mend=f"as root: apt install {PACKAGES[CXX]}")
    for name in native_build.RUNTIME:
        shutil.copyfile(executorch / "lib" / name, out / name)


def _build_counters(out: Path, wheels: Path, tools: Mapping[str, Path]) -> None:
    beside = ["-Wl,-rpath,$ORIGIN", f"-Wl,-rpath-link,{out}"]
    flags = [str(tools[CC]), "-std=c99", "-D_GNU_SOURCE", "-O2", f"-I{native_build.SOURCES}"]
    link = [f"-L{out}", "-lharmony", *beside]
    _run([*flags, str(SOURCES / "count_device.c"), "-o", str(out / "count-executorch"), *link])
    (library,) = (wheels / "onnxruntime" / "capi").glob("libonnxruntime.so.*")
    shutil.copyfile(library, out / _ONNXRUNTIME)
    link = [str(out / _ONNXRUNTIME), *beside]
    _run([*flags, str(SOURCES / "count_onnx.c"), "-o", str(out / "count-onnxruntime"), *link])


def _build_plugin(folder: Path, emulator: Path) -> None:
    major = int(_version(emulator).split(".")[0])
    interface = 2 if major >= _FIRST_WITH_SECOND_INTERFACE else 1
    flags = ["-shared", "-fPIC", "-O2", "-fvisibility=hidden", f"-DHARMONY_PLUGIN_VERSION={interface}"]
    _run(["cc", *flags, str(SOURCES / "plugin.c"), "-o", str(folder / PLUGIN)])


def _copy_libraries(out: Path, compiler: Path) -> None:
    """Of the cross compiler: the C library that programs for Arm find at /lib."""
    out.mkdir()
    for name in _LIBRARIES:
        place = Path(_run([str(compiler), f"-print-file-name={name}"]).strip())
        if not place.is_file():
            raise EngineUnavailable(f"{compiler} has no {name} for Arm", mend="as root: apt install libc6-arm64-cross")
        shutil.copyfile(place, out / name)
    (out / _LIBRARIES[0]).chmod(0o755)


def _record(tools: Mapping[str, Path]) -> ArmEnvironment:
    emulator, libraries = tools[EMULATOR], None
    unpacked = emulator.parent.parent
    if (unpacked / "usr" / "bin" / EMULATOR).is_file():  # not the wrapper: a signal has to reach the emulator
        emulator, libraries = unpacked / "usr" / "bin" / EMULATOR, str(libraries_in(unpacked))
    engines = dict(wheel.requirement.split("==") for wheel in (EXECUTORCH, ONNXRUNTIME))
    versions = {"qemu": _version(tools[EMULATOR]), "gcc": _run([str(tools[CC]), "-dumpfullversion"]).strip()}
    return ArmEnvironment(emulator=str(emulator.resolve()), libraries=libraries, versions=versions | engines)


def _version(emulator: Path) -> str:
    """As in "qemu-aarch64 version 7.2.22 (Debian …)"."""
    return _run([str(emulator), "--version"]).split("version ")[1].split()[0]


def _run(command: list[str]) -> str:
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineUnavailable(f"{command[0]} failed: {error}", mend="install it again") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise EngineUnavailable(f"{command[0]} failed: {said[0] if said else 'it does not say why'}")
    return done.stdout
