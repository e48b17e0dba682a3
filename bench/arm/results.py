"""The records of Tier 1: what every field means. Instructions are exact counts; times are predictions with a range."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harmony.bench.arm.cores import CoreName
from harmony.bench.devices import ModelName
from harmony.bench.results import AnswerPath, Host, Versioned
from harmony.core.bundle import EngineName, Precision
from harmony.core.sealed import Sha256
from harmony.core.spec import Frozen

Instructions = Annotated[int, Field(ge=0)]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Span(Frozen):
    """A predicted time, and the range in which it lies as far as the nets with published latencies can tell."""

    ms: Milliseconds
    low: Milliseconds
    high: Milliseconds


class PathCount(Frozen):
    """Instructions of one answer by where it leaves. cloud: exit 2 was not sure either, and the feature is framed.

    instructions: of every further answer, everything between the image and the decision; with engine "onnxruntime",
    of the bare engine calls; first: of the first answer after opening; engine: those of `instructions` that are spent
    inside the engine; predicted: on the device, None where none was named.
    """

    path: AnswerPath
    instructions: Instructions
    first: Instructions
    engine: Instructions
    predicted: Span | None = None


class BundleCount(Frozen):
    """One device bundle on one core. program: SHA-256 of the engine's files; opening: instructions of loading it."""

    name: str
    architecture: str
    parameters: Annotated[int, Field(ge=0)]
    engine: EngineName
    precision: Precision = "fp32"
    core: CoreName
    program: Sha256
    opening: Instructions
    paths: Annotated[tuple[PathCount, ...], Field(min_length=1)]


class ArmResult(Versioned):
    """What `harmony bench arm` writes.

    device: whose milliseconds are predicted, and calibration: from what; versions: of emulator, compiler and engines.
    """

    FORMAT: ClassVar[str] = "harmony-bench-arm"
    VERSION: ClassVar[int] = 2

    format: Literal["harmony-bench-arm"] = "harmony-bench-arm"
    format_version: Literal[2] = 2
    tier: Literal["arm-instructions"] = "arm-instructions"
    harmony_version: str
    threads: Literal[1] = 1
    device: str | None = None
    calibration: str | None = None
    versions: dict[str, str]
    host: Host
    bundles: Annotated[tuple[BundleCount, ...], Field(min_length=1)]


class NetCount(Frozen):
    """A published net on a core. parameters: its fp32 weights; hot: instructions of an inference; first: of the first
    one, set-up included."""

    net: ModelName
    core: CoreName
    parameters: Annotated[int, Field(ge=1)]
    hot: Instructions
    first: Instructions


class NetsResult(Versioned):
    """What `python -m harmony.bench.arm.validate` writes: the published nets, counted."""

    FORMAT: ClassVar[str] = "harmony-bench-arm-nets"
    VERSION: ClassVar[int] = 2

    format: Literal["harmony-bench-arm-nets"] = "harmony-bench-arm-nets"
    format_version: Literal[2] = 2
    harmony_version: str
    versions: dict[str, str]
    host: Host
    nets: tuple[NetCount, ...]
