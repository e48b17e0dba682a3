"""What `harmony bench setup-arm` built: where it lies, and whether it is whole.

    cache/arm/HASH/environment.json   what it was built from; written last
                   plugin.so           counts, inside the emulator
                   bin/                Arm programs, and the libraries beside which they look for theirs
                   lib/                the C and C++ libraries for Arm
                   cores/NAME/         a root folder for each core: lib, and its /proc/cpuinfo
    cache/arm/tools-HASH/             emulator and compilers out of packages, where the system has none

HASH is that of everything that a count depends on here: our sources and the pinned wheels.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ValidationError

from harmony.bench.arm.wheels import WHEELS
from harmony.core.cache import cache_dir
from harmony.core.errors import ArtifactCorrupt, EngineUnavailable
from harmony.core.spec import Frozen
from harmony.device import native_build

SOURCES = Path(__file__).parent / "native"
RECORD, PLUGIN, BIN, LIB, CORES_DIR = "environment.json", "plugin.so", "bin", "lib", "cores"
COMMAND = "harmony bench setup-arm"


class ArmEnvironment(Frozen):
    """The record of a built environment.

    emulator: the command; libraries: a folder with libraries that it needs, if it came out of a package; versions: of
    emulator, compiler, C library, and the wheels.
    """

    FORMAT: ClassVar[str] = "harmony-arm-environment"

    format: Literal["harmony-arm-environment"] = "harmony-arm-environment"
    format_version: Literal[1] = 1
    emulator: str
    libraries: str | None = None
    versions: dict[str, str]


def arm_folder() -> Path:
    """Where all of them lie."""
    return cache_dir() / "arm"


def environment_folder() -> Path:
    """Where the environment for the sources at hand lies, or would."""
    return arm_folder() / _key()


def open_environment() -> tuple[Path, ArmEnvironment]:
    """The environment's folder and record. EngineUnavailable if it was not built, or the emulator is gone since."""
    folder = environment_folder()
    path = folder / RECORD
    if not path.is_file():
        raise EngineUnavailable("the emulated Arm environment was not built for this version", mend=COMMAND)
    try:
        found = ArmEnvironment.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactCorrupt(error.errors()[0]["msg"], where=path, mend=f"remove the folder, then {COMMAND}") from None
    if not Path(found.emulator).is_file():
        raise EngineUnavailable(f"the emulator {found.emulator} is gone", mend=f"remove {folder}, then {COMMAND}")
    return folder, found


def _key() -> str:
    ours = [*SOURCES.glob("*.*"), *native_build.SOURCES.glob("*.*")]
    parts = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sorted(ours)]
    parts += [f"{wheel.requirement} {wheel.sha256}" for wheel in WHEELS]
    return hashlib.sha256("\n".join([platform.machine(), *parts]).encode()).hexdigest()[:16]
