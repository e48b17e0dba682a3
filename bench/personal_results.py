"""The result file of `harmony bench personalize`: what its fields mean. Shares from 0 to 1, sizes in bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harmony.bench.personal_child import Way
from harmony.bench.results import Host, Share, Summary, Versioned
from harmony.core.spec import Frozen


class StepCost(Frozen):
    """CPU milliseconds a step of 16 images, over rounds."""

    way: Way
    cpu_ms: Summary


class CloudCost(Frozen):
    """How often the back end is right on test images of the user's classes, and of all others, before and after."""

    own_before: Share
    own_after: Share
    other_before: Share
    other_after: Share


class Learning(Frozen):
    """A bundle made personal. cpu_s, peak_bytes: of the process, over rounds; before, after: held-out accuracy of the
    device alone; adopted: that was better; cloud: None without a back end, or where features stay as they were;
    dropped: engines without a program in the new version."""

    way: Way
    cpu_s: Summary
    peak_bytes: Summary
    steps: int
    adopted: bool
    before: Share
    after: Share
    cloud: CloudCost | None
    dropped: tuple[str, ...]


class PersonalSettings(Frozen):
    """What is measured. data: as for `harmony personalize`; None: `images` training images a class of the bundle's own
    data set, of `classes`; None: the later half of its own ones, and as many others as it has in the former half.

    back_end: a cloud bundle, to see what a changed feature costs it.
    """

    bundle: Path
    data: str | None = None
    data_dir: Path | None = None
    classes: tuple[str, ...] | None = None
    images: Annotated[int, Field(ge=2, le=100_000)] = 60
    back_end: Path | None = None
    rounds: Annotated[int, Field(ge=1)] = 5
    seed: Annotated[int, Field(ge=0)] = 0


class PersonalBench(Versioned):
    """The result file. digest: of the bundle; own_before, own_after: names of its classes; skipped: ways that could not
    be gone, and why."""

    FORMAT: ClassVar[str] = "harmony-personalize-bench"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-personalize-bench"] = "harmony-personalize-bench"
    format_version: Literal[1] = 1
    settings: PersonalSettings
    digest: str
    architecture: str
    parameters: int
    own_before: tuple[str, ...]
    own_after: tuple[str, ...]
    steps: tuple[StepCost, ...]
    learning: tuple[Learning, ...]
    skipped: dict[str, str]
    host: Host
