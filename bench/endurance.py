"""Does a device's memory grow? One process answers many images, and opens its bundle many times.

The process is a device's own: no torch. Once it is warm, its resident memory is read at even distances as it answers,
and as it opens, which checks every byte and loads the engine anew. Growth is the last reading over the first.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from harmony.bench.child import run_module
from harmony.bench.host import Watch
from harmony.bench.results import Host
from harmony.core.bundle import open_device_bundle
from harmony.core.errors import HarmonyError
from harmony.core.sealed import write_atomically
from harmony.core.spec import Frozen, ImageSpec
from harmony.device.engine import EngineChoice
from harmony.device.runner import Device

READINGS = 10
_IMAGES = 64
_PAGE_BYTES = 4096


class Course(Frozen):
    """Resident memory while one thing was done `count` times: READINGS even distances after the first tenth.

    resident_bytes: the first when that tenth was done, the last at the end.
    """

    count: Annotated[int, Field(ge=READINGS)]
    resident_bytes: Annotated[tuple[int, ...], Field(min_length=2)]

    @property
    def growth(self) -> float:
        """Share by which the last reading is above the first; below 0 where memory was given back."""
        return self.resident_bytes[-1] / self.resident_bytes[0] - 1


class Courses(Frozen):
    """What one device process has to say."""

    answers: Course
    openings: Course


class Endurance(Frozen):
    """One bundle under one engine."""

    bundle: str
    engine: EngineChoice
    answers: Course
    openings: Course
    host: Host


def endure(bundle: Path, engine: EngineChoice, *, answers: int, openings: int) -> Endurance:
    """Measure in a device process of its own. ArtifactError, EngineUnavailable, EngineError if that process fails."""
    open_device_bundle(bundle)
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="harmony-endurance-") as folder:
        out = Path(folder) / "out.json"
        run_module(__name__, [str(bundle), engine, str(answers), str(openings), str(out)], where=bundle)
        found = Courses.model_validate_json(out.read_bytes())
    return Endurance(
        bundle=str(bundle), engine=engine, answers=found.answers, openings=found.openings, host=watch.host()
    )


def course(count: int, run: Callable[[int], object]) -> Course:
    """Call run(0) … run(count − 1), and read this process's resident memory on the way."""
    warm = count // READINGS
    marks = {round(warm + step * (count - warm) / READINGS) for step in range(READINGS + 1)}
    readings = []
    for done in range(1, count + 1):
        run(done - 1)
        if done in marks:
            readings.append(resident_bytes())
    return Course(count=count, resident_bytes=tuple(readings))


def resident_bytes() -> int:
    """Of this process: the second word of Linux's /proc/self/statm, in pages (proc(5))."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def _images(spec: ImageSpec) -> NDArray[Any]:
    """Noise, of which some leaves at either exit and some would be sent; (_IMAGES, H, W, C)."""
    shape, random = (_IMAGES, spec.height, spec.width, spec.channels), np.random.default_rng(0)
    if spec.dtype == "uint8":
        return random.integers(0, 256, shape, dtype=np.uint8)
    return random.random(shape, dtype=np.float32)


def main(arguments: Sequence[str]) -> None:
    """The device process: BUNDLE ENGINE ANSWERS OPENINGS OUT."""
    bundle, engine, answers, openings, out = arguments
    images = _images(open_device_bundle(Path(bundle)).image)

    def opened() -> Device:
        return Device.open(Path(bundle), engine=engine)  # type: ignore[arg-type]  # checked there

    device = opened()
    courses = Courses(
        answers=course(int(answers), lambda number: device.answer(images[number % _IMAGES])),
        openings=course(int(openings), lambda number: opened().answer(images[number % _IMAGES])),
    )
    write_atomically(Path(out), courses.model_dump_json().encode())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except HarmonyError as error:
        sys.exit(f"{type(error).__name__}: {error}")
