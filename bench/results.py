"""The result file: what every field of results.json means. Times in seconds, sizes in bytes, shares from 0 to 1.

`None` says "not measured" or "does not apply" (there is no OOD accuracy without OOD images), never zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from harmony.bench.links import Link
from harmony.core.bundle import EngineName
from harmony.core.bundle import Precision as Precision  # noqa: PLC0414  (every reader of results needs it)
from harmony.core.spec import Frozen
from harmony.core.wire import Codec

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
AnswerPath = Literal["exit1", "exit2", "cloud"]
Regime = Literal["hot", "sparse"]
Tier = Literal["virtual-time", "arm-instructions", "constrained", "phone"]


class Summary(Frozen):
    """n measured values in few numbers; percentiles are nearest-rank."""

    n: Annotated[int, Field(ge=1)]
    min: float
    median: float
    p90: float
    p99: float
    mean: float


class Ratio(Frozen):
    """A ratio measured once a round: its median over the rounds, and the lowest and highest round."""

    median: float
    low: float
    high: float
    rounds: Annotated[int, Field(ge=1)]


class Conditions(Frozen):
    """What a latency holds for. Figures of different conditions are never put into one.

    tier: how time was had: CPU time of this host, Arm instructions under emulation, a process whose CPU, memory and
    network are held short, or a real phone; slowdown: k, device CPU time over this host's; calibration: where k comes
    from; regime: hot = call after call, sparse = with pauses between, so that caches and clocks cool down.
    """

    tier: Tier = "virtual-time"
    engine: EngineName
    threads: Literal[1] = 1
    precision: Precision = "fp32"
    regime: Regime
    slowdown: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    calibration: str = "none: times are this host's own"


class PathTiming(Frozen):
    """One way an answer can take. exit1, exit2: answered on the device there; cloud: offloaded over loopback.

    wall, cpu: the device path (preprocess, engine, gate, decision; for cloud also encoding and HTTP), wall clock and
    CPU time of its thread; bare: wall clock of the bare engine calls over the same, already prepared input, taken in
    turns with the device path; ratio: device path over bare, image by image, one median a round.
    """

    path: AnswerPath
    wall: Summary
    cpu: Summary
    bare: Summary | None = None
    ratio: Ratio | None = None


class Timing(Frozen):
    """Latencies under one set of conditions. ratio: over images as they come, whichever exit they take."""

    conditions: Conditions
    first_answer_s: Seconds
    rounds: Annotated[int, Field(ge=1)]
    paths: tuple[PathTiming, ...]
    ratio: Ratio | None = None

    def path(self, name: AnswerPath) -> PathTiming | None:
        """The timing of that path, if a sample took it."""
        return next((one for one in self.paths if one.path == name), None)


class Prediction(Frozen):
    """Latency of an answer in virtual time: CPU · k, for offloaded ones + waiting for the cloud + the link.

    link: None for an answer on the device; cold_median_s: where the connection has to be opened first.
    """

    path: AnswerPath
    link: str | None
    median_s: Seconds
    p90_s: Seconds
    cold_median_s: Seconds | None = None


class Process(Frozen):
    """The device process that answered the whole stream, alone with one engine."""

    peak_rss_bytes: Count
    torch_loaded: bool
    cpu_s: Seconds
    versions: dict[str, str]


class CodecSize(Frozen):
    """Median size of one feature frame under a codec."""

    codec: Codec
    frame_bytes: Count


class Wire(Frozen):
    """Bytes of one offload. request, answer: HTTP bodies as sent and received, None if nothing was offloaded.

    image_bytes: the raw image, for comparison; it never leaves the device.
    """

    codec: Codec
    request: Summary | None
    answer: Summary | None
    codecs: tuple[CodecSize, ...]
    image_bytes: Count


class Accuracy(Frozen):
    """Accuracy over one test mix, as shares of correct answers.

    overall: what the system answered; id, ood: the same over own and other classes; client: the device's own answer
    for every image; server: the back end's for every image; oracle: exit 2's for ID, the back end's for OOD images.
    """

    overall: Share
    id: Share
    ood: Share | None = None
    client: Share | None = None
    server: Share | None = None
    oracle: Share | None = None


class MixResult(Frozen):
    """One test mix: n_id images of own classes and n_ood ≈ ρ · n_id of others.

    exit1, exit2, cloud: where the answers came from, together 1; unsure: share that no exit was sure enough of, so
    that it went to the cloud, or would have; degraded: share for which the cloud was asked and did not help.
    offload_id: share of ID images that were sent away; keep_ood: share of OOD images that were not.
    """

    rho: Annotated[float, Field(ge=0)]
    n_id: Count
    n_ood: Count
    exit1: Share
    exit2: Share
    cloud: Share
    unsure: Share
    degraded: Share
    offload_id: Share
    keep_ood: Share | None
    accuracy: Accuracy


class BundleResult(Frozen):
    """One device bundle under one engine."""

    name: str
    run: str
    method: str
    client: Count
    architecture: str
    parameters: Count
    dataset: str
    own_classes: tuple[str, ...]
    engine: EngineName
    file_bytes: dict[EngineName, Count]
    mixes: Annotated[tuple[MixResult, ...], Field(min_length=1)]
    process: Process
    wire: Wire
    timings: tuple[Timing, ...]
    predictions: tuple[Prediction, ...]

    @property
    def hardest(self) -> MixResult:
        """The mix with the largest ρ."""
        return max(self.mixes, key=lambda mix: mix.rho)

    @property
    def hot(self) -> Timing | None:
        """The timing of the hot regime."""
        return next((one for one in self.timings if one.conditions.regime == "hot"), None)


class Host(Frozen):
    """The machine and how quiet it was: steal is the share of CPU time that the hypervisor gave to others."""

    cpu: str
    cores: Count
    affinity: tuple[int, ...]
    memory_bytes: Count
    system: str
    python: str
    versions: dict[str, str]
    commit: str | None
    load_before: float
    load_after: float
    steal: Share


class Bar(Frozen):
    """A measured value beside the limit that the project set itself."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether the value is within the limit."""
        return self.value <= self.limit


class Versioned(Frozen):
    """Base of the result files. A subclass sets FORMAT and VERSION, and fields `format`, `format_version`."""

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int]


class BenchSettings(Frozen):
    """What to measure. `key` is never written out.

    bundles: device bundles; cloud: a cloud bundle, served for the time of the bench; server: URL of a running service
    instead; data: a data set's name or path, None for the one that the bundle names; limit: images a bundle at most;
    rounds: interleaved rounds of the latency measurement; per_path: images a round and path; k: slowdown.
    """

    bundles: Annotated[tuple[Path, ...], Field(min_length=1)]
    cloud: Path | None = None
    server: str | None = None
    key: Annotated[str | None, Field(exclude=True, repr=False)] = None
    data: str | None = None
    data_dir: Path | None = None
    engines: Annotated[tuple[EngineName, ...], Field(min_length=1)] = ("onnxruntime",)
    rhos: Annotated[tuple[Annotated[float, Field(ge=0, le=100)], ...], Field(min_length=1)]
    links: tuple[str, ...] = ("wifi", "lte", "4g", "3g")
    rounds: Annotated[int, Field(ge=1, le=1000)] = 5
    per_path: Annotated[int, Field(ge=1, le=100_000)] = 20
    regimes: Annotated[tuple[Regime, ...], Field(min_length=1)] = ("hot",)
    slowdown: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    limit: Annotated[int, Field(ge=1)] | None = None
    deadline_s: Annotated[float, Field(gt=0, le=600)] = 2.0
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_cloud(self) -> Self:
        if self.cloud is not None and self.server is not None:
            raise ValueError("give a cloud bundle or a server, not both")
        return self


class BenchResult(Versioned):
    """results.json of `harmony bench`."""

    FORMAT: ClassVar[str] = "harmony-bench"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-bench"] = "harmony-bench"
    format_version: Literal[1] = 1
    harmony_version: str
    settings: BenchSettings
    host: Host
    links: tuple[Link, ...]
    bundles: tuple[BundleResult, ...]
    speed: tuple[Bar, ...]


def mean_accuracy(results: Iterable[Accuracy]) -> Accuracy:
    """Mean over clients, each counting alike; a value that one client lacks is None."""
    rows = [one.model_dump() for one in results]
    columns = {name: [row[name] for row in rows] for name in Accuracy.model_fields}
    means = {name: None if None in values else sum(values) / len(values) for name, values in columns.items()}
    return Accuracy.model_validate(means)
