"""What came of making a bundle personal, as a report that a script or a person can read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harmony.core.bundle import Exit
from harmony.core.training import StepEngine, What
from harmony.device.personal.judge import Drift


@dataclass(frozen=True)
class Cloud:
    """How often the back end is right on the held-out images, asked with the features of before and after."""

    before: float
    after: float


@dataclass(frozen=True)
class Outcome:
    """adopted: the new version is in use; version: the one in use now. before, after: held-out accuracy of the device
    alone, as it was and as it would be or is. own_before, own_after: names of the classes that a version holds.

    steps, learning_s: of the last thing trained (the front end, where that was asked for); seconds: of everything;
    peak_bytes: of the process. exits: of the version in use. moved, moved_others: how far features of the held-out
    images, and of the test vectors' images, moved; None where only heads were trained. dropped: engines whose programs
    could not be changed over here.
    """

    bundle: Path
    adopted: bool
    version: int
    what: What
    engine: StepEngine
    own_before: tuple[str, ...]
    own_after: tuple[str, ...]
    train_images: int
    holdout_images: int
    before: float
    after: float
    exits: tuple[Exit, ...]
    steps: int
    learning_s: float
    seconds: float
    peak_bytes: int
    moved: Drift | None
    moved_others: Drift | None
    cloud: Cloud | None
    dropped: tuple[str, ...]
    signed: bool
    was_signed: bool

    @property
    def words(self) -> str:
        """The decision in one sentence."""
        numbers = f"{self.holdout_images} held-out images: {self.before:.1%} before, {self.after:.1%} after"
        if self.adopted:
            return f"version {self.version} is in use ({numbers})"
        return f"the old one stays: the new one is not better ({numbers})"
