"""Does a device's memory grow? One process a bundle answers many images, and opens its bundle many times.

The process is a device's own: no torch. Once it is warm, its resident memory is read at even distances as it answers,
and as it opens, which checks every byte and loads the engine anew. Growth is the last reading over the first.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harmony.bench.child import ask
from harmony.bench.endurance_probe import Course, Courses, EnduranceJob, Times
from harmony.bench.host import Watch
from harmony.bench.results import Host, Versioned
from harmony.core.bundle import open_device_bundle
from harmony.core.spec import Frozen
from harmony.device.engine import EngineChoice

OnBundle = Callable[[Path], None]


class EnduranceSettings(Frozen):
    """What is measured. answers, openings: how many of each, by every bundle."""

    bundles: Annotated[tuple[Path, ...], Field(min_length=1)]
    engine: EngineChoice = "onnxruntime"
    answers: Times = 100_000
    openings: Times = 1000


class Endured(Frozen):
    """What became of one bundle's process."""

    bundle: str
    answers: Course
    openings: Course

    @property
    def growth(self) -> float:
        """The larger of both."""
        return max(self.answers.growth, self.openings.growth)


class EnduranceResult(Versioned):
    """The result file of `harmony bench endurance`. Sizes in bytes."""

    FORMAT: ClassVar[str] = "harmony-bench-endurance"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-bench-endurance"] = "harmony-bench-endurance"
    format_version: Literal[1] = 1
    harmony_version: str
    settings: EnduranceSettings
    host: Host
    bundles: tuple[Endured, ...]


def endure(settings: EnduranceSettings, on_bundle: OnBundle = lambda bundle: None) -> EnduranceResult:
    """Measure all bundles, one after the other. ArtifactError before anything is measured; EngineError if a device
    process fails."""
    for bundle in settings.bundles:
        open_device_bundle(bundle)
    watch, found = Watch(), []
    for bundle in settings.bundles:
        on_bundle(bundle)
        job = EnduranceJob(bundle=bundle, engine=settings.engine, answers=settings.answers, openings=settings.openings)
        courses = ask("harmony.bench.endurance_probe", job, Courses, where=bundle)
        found.append(Endured(bundle=str(bundle), answers=courses.answers, openings=courses.openings))
    return EnduranceResult(
        harmony_version=version("harmony-sfl"), settings=settings, host=watch.host(), bundles=tuple(found)
    )
