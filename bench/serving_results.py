"""What `python -m harmony.bench.serving` found: its file, a table for a terminal, and the tables of docs/serving.md.

Everything is a median over rounds. Ratios are taken within a round, where both sides met the same machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import ClassVar, Literal, NamedTuple

from harmony.bench.published import markdown_table
from harmony.bench.results import Count, Host, Versioned
from harmony.core.spec import Frozen

BEGIN = "<!-- figures: begin (written by `python -m harmony.bench.serving --publish`) -->"
END = "<!-- figures: end -->"
FP32, FULL, CROWD = "fp32, 32 connections", "fp32, full protocol, 32 connections", "fp32, 128 connections"
INT8, INT8_MODEL = "int8 model and features, 32 connections", "int8 model, fp32 features, 32 connections"
PEAK = "peak with a short queue, 64 connections"
HEEDED, HAMMERED = "4x overload, Retry-After heeded", "4x overload, hammering"
AHEAD = {"litserve": 8.0, "bentoml": 16.0}
"""How many times our CPU time a request a peer shall need at least."""
Values = dict[str, float]


class Spread(Frozen):
    """One quantity over the rounds."""

    median: float
    min: float
    max: float
    rounds: tuple[float, ...]


class CaseResult(Frozen):
    """One row.

    limit: the probe whose CPU time a sample is `share` of this row's a request; ours: our own row with the same model
    and the same body, whose CPU time a request goes `times_ours` into this one's. values: by quantity; times in
    milliseconds, `goodput` in answers with 200 a second, `refused` every other answer of a round.
    """

    limit: str | None = None
    ours: str | None = None
    values: dict[str, Spread]


class ServingConfig(Frozen):
    """What was served, and how long each measurement took. queue: seconds of --queue-seconds, by kind of service."""

    width: int
    mflop: float
    cut: str
    rounds: Count
    seconds: float
    queue: dict[str, str]


class ServingResult(Versioned):
    """results/serving.json. versions: of the server's own parts, and of the peers with their ONNX Runtime."""

    FORMAT: ClassVar[str] = "harmony-bench-serving"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-bench-serving"] = "harmony-bench-serving"
    format_version: Literal[1] = 1
    config: ServingConfig
    host: Host
    versions: dict[str, str]
    cases: dict[str, CaseResult]


def summary(
    name: str, found: Mapping[str, Sequence[Values]], limit: str | None = None, ours: str | None = None
) -> CaseResult:
    """One case from its rounds and those of the cases that it is compared with. What one round lacks is left out."""
    rounds = [dict(values) for values in found[name]]
    for number, values in enumerate(rounds):
        if "cpu_ms" not in values:
            continue
        if limit is not None:
            values["share"] = found[limit][number]["cpu_ms"] / values["cpu_ms"]
        if ours is not None and "cpu_ms" in found[ours][number]:
            values["times_ours"] = values["cpu_ms"] / found[ours][number]["cpu_ms"]
    keys = set.intersection(*(set(values) for values in rounds))
    return CaseResult(
        limit=limit, ours=ours, values={key: _spread([values[key] for values in rounds]) for key in sorted(keys)}
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median=median(values), min=min(values), max=max(values), rounds=tuple(values))


class _Column(NamedTuple):
    key: str
    title: str
    digits: int


_COLUMNS = (
    _Column("cpu_ms", "CPU-ms", 3),
    _Column("share", "of the limit", 3),
    _Column("times_ours", "× ours", 1),
    _Column("goodput", "answers/s", 0),
    _Column("p50_ms", "p50 ms", 1),
    _Column("p99_ms", "p99 ms", 1),
    _Column("p99_over_p50", "p99/p50", 2),
    _Column("refused", "refused", 0),
)


def _cells(case: CaseResult) -> list[str]:
    return [f"{case.values[one.key].median:.{one.digits}f}" if one.key in case.values else "" for one in _COLUMNS]


def table(result: ServingResult) -> str:
    """Medians and limits, for a terminal."""
    lines = [f"{'median of the rounds':42}" + "".join(f"{one.title:>13}" for one in _COLUMNS)]
    lines += [f"{name:42}" + "".join(f"{cell:>13}" for cell in _cells(case)) for name, case in result.cases.items()]
    lines += [f"{one.name:65}{one.value:7.2f}  {one.sense} {one.limit:5.2f}  {one.verdict}" for one in bars(result)]
    return "\n".join(lines)


class Bar(NamedTuple):
    """A figure beside the limit that the project set itself."""

    name: str
    value: float
    sense: Literal["≥", "≤"]
    limit: float

    @property
    def verdict(self) -> str:
        """Whether it is kept."""
        kept = self.value >= self.limit if self.sense == "≥" else self.value <= self.limit
        return "met" if kept else "missed"


def bars(result: ServingResult) -> list[Bar]:
    """Every limit that this result has a figure for."""
    share = "of the limit without HTTP, "
    wanted: tuple[tuple[str, str, str, Literal["≥", "≤"], float], ...] = (
        (f"{share}{FP32}", FP32, "share", "≥", 0.75),
        (f"{share}{FULL}", FULL, "share", "≥", 0.65),
        (f"{share}{INT8}", INT8, "share", "≥", 0.55),
        (f"p99 over p50, {CROWD}", CROWD, "p99_over_p50", "≤", 1.5),
        *((f"CPU time a request over ours, {name}", name, "times_ours", "≥", AHEAD[name.partition(",")[0]])
          for name, case in result.cases.items() if case.ours is not None),
    )  # fmt: skip
    found = [
        Bar(name, result.cases[case].values[key].median, sense, limit)
        for name, case, key, sense, limit in wanted
        if case in result.cases and key in result.cases[case].values
    ]
    return found + [
        Bar(f"goodput over the peak, {name}", _over(result, name, PEAK), "≥", limit)
        for name, limit in ((HEEDED, 0.9), (HAMMERED, 0.7))
        if name in result.cases and PEAK in result.cases
    ]


def _over(result: ServingResult, name: str, other: str) -> float:
    mine, theirs = (result.cases[one].values["goodput"].rounds for one in (name, other))
    return median(one / two if two else 0.0 for one, two in zip(mine, theirs, strict=True))


def block(result: ServingResult) -> str:
    """The Markdown between the marks of docs/serving.md."""
    config, host = result.config, result.host
    rows = [(name, *_cells(case)) for name, case in result.cases.items()]
    limits = [(one.name, f"{one.value:.2f}", f"{one.sense} {one.limit:g}", one.verdict) for one in bars(result)]
    versions = ", ".join(f"{name} {number}" for name, number in result.versions.items())
    return "\n\n".join(
        (
            markdown_table(("case", *(one.title for one in _COLUMNS)), rows),
            markdown_table(("limit that the project set itself", "measured", "limit", ""), limits),
            f"Medians of {config.rounds} rounds of {config.seconds:g} s; {config.mflop:.1f} MFLOP a sample, cut "
            f"{config.cut}; {host.cpu}, {host.cores} cores, onnxruntime {host.versions.get('onnxruntime')}, "
            f"{versions}; commit {host.commit}.",
        )
    )
