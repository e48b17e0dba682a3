"""The device process of `harmony.bench.endurance`: answers and opens again and again, reads its memory. No torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from harmony.bench.child import reply
from harmony.bench.pictures import noise
from harmony.core.bundle import open_device_bundle
from harmony.core.spec import Frozen
from harmony.device import Device
from harmony.device.engine import EngineChoice
from harmony.device.memory import resident_bytes

READINGS = 10
_IMAGES = 64

Times = Annotated[int, Field(ge=READINGS)]


class EnduranceJob(Frozen):
    """One bundle under one engine."""

    bundle: Path
    engine: EngineChoice
    answers: Times
    openings: Times


class Course(Frozen):
    """Resident memory while one thing was done `count` times, after half as many to warm up: READINGS even distances.

    resident_bytes: the first when it was warm, the last at the end.
    """

    count: Times
    resident_bytes: Annotated[tuple[int, ...], Field(min_length=2)]

    @property
    def growth(self) -> float:
        """Share by which the last reading is above the first; below 0 where memory was given back."""
        return self.resident_bytes[-1] / self.resident_bytes[0] - 1


class Courses(Frozen):
    """What the process has to say."""

    answers: Course
    openings: Course


def course(count: int, run: Callable[[int], object]) -> Course:
    """Call run(0), run(1), … to warm up, then `count` times more, and read this process's resident memory on the way.

    An allocator settles late: a pool more of its own, hundreds of openings on, is no growth that would go on.
    """
    warm = count // 2
    marks = {warm + round(step * count / READINGS) for step in range(READINGS + 1)}
    readings = []
    for done in range(1, warm + count + 1):
        run(done - 1)
        if done in marks:
            readings.append(resident_bytes())
    return Course(count=count, resident_bytes=tuple(readings))


def measure(job: EnduranceJob) -> Courses:
    """The errors of opening and answering. Of noise, some images leave at either exit and some would be sent."""
    images = noise(open_device_bundle(job.bundle).image, _IMAGES)

    def opened() -> Device:
        return Device.open(job.bundle, engine=job.engine)

    device = opened()
    return Courses(
        answers=course(job.answers, lambda number: device.answer(images[number % _IMAGES])),
        openings=course(job.openings, lambda number: opened().answer(images[number % _IMAGES])),
    )


if __name__ == "__main__":
    sys.exit(reply(EnduranceJob, measure))
