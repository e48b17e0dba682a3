"""Every error that a user can cause or meet, in one tree.

HarmonyError
├── ConfigError             a setting, argument or name that cannot be meant
├── DataError               images and labels
│   ├── DataMissing           nothing at that path
│   ├── DataForeign           something is there, but not in the format
│   ├── LabelOutOfRange       a label outside 0 … classes − 1
│   ├── EmptyClass            a class without images
│   └── DownloadFailed        no answer, or not the bytes that were promised
├── ContractMismatch        two sides of a boundary disagree about shape, type or classes
├── ArtifactError           checkpoints and bundles on disk
│   ├── ArtifactMissing       no such folder, or a file of it is gone
│   ├── ArtifactCorrupt       truncated, edited or otherwise not what was sealed
│   ├── ArtifactTooNew        written by a later format version
│   └── ArtifactUntrusted     no trusted key signed it
├── RunError                training runs
│   ├── RunExists             the run folder is already there
│   └── Diverged              a loss stopped being a finite number
├── EngineError             running a model
│   ├── EngineUnavailable     the runtime is not installed or the bundle lacks its files
│   ├── InvalidInput          an image or feature of wrong shape, type or with NaN
│   └── ParityFailed          an engine's output is not the reference's
├── WireError               a feature frame that cannot be decoded
├── FallbackError           the cloud did not help
│   ├── CloudUnreachable      no connection
│   ├── CloudTimeout          no answer within the deadline
│   ├── CloudRefused          wrong key, too large, too busy
│   ├── CloudAnswerInvalid    an answer that is not one
│   └── CircuitOpen           it failed so often that it is not asked for a while
├── ServiceError            running the service
│   └── PortInUse             somebody listens there already
└── StorageError            the disk is full or not writable

A message is one line: what is wrong, where, and how to mend it. The command prints it and exits with 2.
"""

from __future__ import annotations

from typing import ClassVar

LONGEST = 2000
"""Characters of a message."""


class HarmonyError(Exception):
    """Base of every named error.

    problem: what is wrong; where: the file, URL or argument; field: the part of it; mend: what to do.
    """

    exit_code: ClassVar[int] = 2

    def __init__(
        self, problem: str, *, where: object = None, field: str | None = None, mend: str | None = None
    ) -> None:
        self.problem = problem
        self.where = None if where is None else str(where)
        self.field = field
        self.mend = mend
        super().__init__(str(self))

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.where, self.field) if part)
        text = f"{place}: {self.problem}" if place else self.problem
        text = f"{text} ({self.mend})" if self.mend else text
        return _one_line(text)


def _one_line(text: str) -> str:
    """What names and files put into a message may hold anything: line ends, terminal codes, half a character, 1 MB."""
    text = " ".join(text[: 2 * LONGEST].split())
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


class ConfigError(HarmonyError):
    """A setting, argument or name that cannot be meant."""


class DataError(HarmonyError):
    """Images and labels that cannot be used."""


class DataMissing(DataError):
    """There is nothing at that path."""


class DataForeign(DataError):
    """Something is there, but not in the expected format."""


class LabelOutOfRange(DataError):
    """A label lies outside 0 … classes − 1."""


class EmptyClass(DataError):
    """A class has no images."""


class DownloadFailed(DataError):
    """A download did not answer, or did not give the promised bytes."""


class ContractMismatch(HarmonyError):
    """Two sides of a boundary disagree about shape, type, scale or classes."""


class ArtifactError(HarmonyError):
    """A checkpoint or bundle that cannot be used."""


class ArtifactMissing(ArtifactError):
    """The folder, or a file that its manifest names, is not there."""


class ArtifactCorrupt(ArtifactError):
    """The bytes on disk are not the bytes that were sealed."""


class ArtifactTooNew(ArtifactError):
    """A later version of HARMONY wrote this."""


class ArtifactUntrusted(ArtifactError):
    """Nobody whose key is trusted signed this, or what was signed is something else."""


class RunError(HarmonyError):
    """A training run that cannot start or go on."""


class RunExists(RunError):
    """The run folder is already there."""


class Diverged(RunError):
    """A loss stopped being a finite number."""


class EngineError(HarmonyError):
    """A model that cannot be run."""


class EngineUnavailable(EngineError):
    """The runtime is not installed, or the bundle has no files for it."""


class InvalidInput(EngineError):
    """An image or feature of wrong shape or type, or with values that are not finite."""


class ParityFailed(EngineError):
    """An engine's output differs from the reference's by more than the tolerance."""


class WireError(HarmonyError):
    """A feature frame that cannot be decoded."""


class FallbackError(HarmonyError):
    """The cloud did not help.

    sent, received: bytes of HTTP bodies that it took; ticket: the question's, if it waits to be asked later.
    """

    sent: int = 0
    received: int = 0
    ticket: int | None = None


class CloudUnreachable(FallbackError):
    """No connection to the cloud."""


class CloudTimeout(FallbackError):
    """No answer within the deadline."""


class CloudRefused(FallbackError):
    """The cloud refused: wrong key, body too large, too busy.

    status: HTTP's; retry_after: seconds that the cloud asked to wait, None if it did not.
    """

    status: int | None = None
    retry_after: float | None = None


class CloudAnswerInvalid(FallbackError):
    """The cloud's answer does not have the promised form."""


class CircuitOpen(FallbackError):
    """The cloud failed so often that it is not asked for a while."""


class ServiceError(HarmonyError):
    """The service cannot run."""


class PortInUse(ServiceError):
    """Somebody listens on that port already."""


class StorageError(HarmonyError):
    """The disk is full or not writable."""
